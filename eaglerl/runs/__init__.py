"""Folders of training runs: checkpoints, metrics, learning curves, resuming."""
