"""Training of PPO and DQN policies with stable-baselines3."""
