"""The draft head: its config, weights, and inference."""
