"""Reproduction of Re-SpS: its policies, its evaluation command with all flags, its grids.

Re-SpS (https://arxiv.org/abs/2601.12212) chooses the draft tree of EAGLE-3 by reinforcement
learning. `resps.policies` holds its PPO and DQN policies, which `eaglerl.sb3` trains as well.
Nothing else in the project needs this package. The setting ``reference`` restores the original
behaviour, faults included.
"""
