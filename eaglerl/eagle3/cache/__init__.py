"""The KV caches of a sequence, their pool, and their owner."""
