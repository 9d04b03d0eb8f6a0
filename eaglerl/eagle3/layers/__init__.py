"""Layers that target and draft head share: linear, rotary embedding, rows of a pass."""
