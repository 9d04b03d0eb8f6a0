"""What a comparison leaves on disk."""
