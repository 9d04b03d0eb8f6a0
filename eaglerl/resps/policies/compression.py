"""Compression of the features: fewer linear combinations of them, trained with the policy.

No activation follows, so at inference the compression and the policy's first layer are one matrix,
at no extra cost.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from eaglerl.resps.policies.policy_settings import PolicySettings

#: Singular values below this share of the largest are rounding errors of float32.
_ROUNDING = 1e-4


class LinearCompression(BaseFeaturesExtractor):
    """k' linear combinations of the k features; the extras pass as they are.

    Attributes:
        linear: from k to k'.
    """

    def __init__(self, observation_space: gym.spaces.Box, width: int, size: int) -> None:
        """Set up.

        Args:
            observation_space: of the observations.
            width: k, columns of the features.
            size: k', columns that they become.
        """
        super().__init__(observation_space, observation_space.shape[0] - width + size)
        self.linear = nn.Linear(width, size)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Return (n, k' + extras) of (n, k + extras)."""
        width = self.linear.in_features
        compressed = self.linear(observations[:, :width])
        return torch.cat((compressed, observations[:, width:]), dim=1)

    @torch.no_grad()
    def fold_into(self, first: nn.Linear) -> nn.Linear:
        """Return the layer that does both: W [C x + c, e] + b = [W' C, W''] [x, e] + (W' c + b).

        Args:
            first: the policy's first layer; W is [W', W''].

        Returns:
            The product, computed in float64 and kept in float32.
        """
        inner = self.linear
        of_features, of_extras = first.weight.double().split(
            [inner.out_features, first.in_features - inner.out_features], dim=1
        )
        weight = torch.cat((of_features @ inner.weight.double(), of_extras), dim=1)
        folded = nn.Linear(weight.shape[1], first.out_features)
        folded.weight.copy_(weight)
        folded.bias.copy_(first.bias.double() + of_features @ inner.bias.double())
        return folded

    @torch.no_grad()
    def unfold(self, weight: torch.Tensor, bias: torch.Tensor, first: nn.Linear) -> None:
        """Set this layer and a first one from what `fold_into` made of such layers.

        Args:
            weight: (hidden, k + extras).
            bias: (hidden,).
            first: the policy's first layer, written too.

        Raises:
            ValueError: the matrix is not a product of such layers.
        """
        inner = self.linear
        of_features = weight[:, : inner.in_features].double()
        left, values, right = torch.linalg.svd(of_features, full_matrices=False)
        rank = min(inner.out_features, len(values))
        if values[rank:].sum() > _ROUNDING * values[0]:
            raise ValueError(
                f"weights must be of features compressed to {inner.out_features}, got a first "
                "layer of a higher rank"
            )
        # W' C = U S V: the first layer gets U sqrt(S), the compression sqrt(S) V.
        roots = values[:rank].sqrt()
        # Combinations beyond the rank keep their initial values, so that training can use them.
        first.weight.zero_()
        first.weight[:, :rank] = left[:, :rank] * roots
        first.weight[:, inner.out_features :] = weight[:, inner.in_features :]
        first.bias.copy_(bias)
        inner.weight[:rank] = roots[:, None] * right[:rank]
        inner.bias.zero_()


def extractor_options(settings: PolicySettings) -> dict[str, Any]:
    """Return the arguments of a model's policy for the compression of the settings, if any."""
    if settings.compressed_size is None:
        return {}
    return {
        "features_extractor_class": LinearCompression,
        "features_extractor_kwargs": {
            "width": settings.spec.width,
            "size": settings.compressed_size,
        },
    }


def compression_of(model: PPO | DQN) -> LinearCompression | None:
    """Return the compression of a model's actor; None without one."""
    if isinstance(model, DQN):
        extractor = model.q_net.features_extractor
    else:
        extractor = model.policy.pi_features_extractor
    return extractor if isinstance(extractor, LinearCompression) else None
