"""Reproduction of Re-SpS (https://arxiv.org/abs/2601.12212): its policies, command, flags and grids.

Nothing else needs this package but trained PPO and DQN policies, which `policies` holds.
"""
