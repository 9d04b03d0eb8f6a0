"""KV caches of a sequence, and who has them."""
