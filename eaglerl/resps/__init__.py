"""Reproduction of Re-SpS (https://arxiv.org/abs/2601.12212): policies, command, flags, grids.

Nothing else needs this package but trained PPO and DQN policies, which `policies` holds.
"""
