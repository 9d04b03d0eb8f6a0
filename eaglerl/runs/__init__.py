"""Folders of training runs: checkpoints, metrics, learning curves, resuming.

`HeadRun` and `PolicyRun` are the folders; both are a `RunFolder` over a `CheckpointFolder`.
"""
