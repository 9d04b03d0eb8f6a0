"""Random policies and taps for the tests of the policy's ops."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from eaglerl.ops import PolicyWeights

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU}


class Norm(nn.Module):
    """A weight and an eps, as a head's norms have them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.eps = 1e-5


@dataclass
class Modules:
    """A head's reduction and a policy as plain modules."""

    fc: nn.Linear
    norms: list[Norm]
    mlp: nn.Sequential
    trees: list[list[int]]

    def weights(self, **options: object) -> PolicyWeights:
        """Their weights."""
        return PolicyWeights.from_modules(
            self.mlp, self.trees, fc=self.fc, norms=self.norms, **options
        )

    def logits(self, taps: Tensor) -> Tensor:
        """Return what the modules compute, in the dtype of `taps`, by torch's own functions."""
        dtype = taps.dtype
        if self.norms:
            widths = [norm.weight.shape[0] for norm in self.norms]
            chunks = [
                nn.functional.rms_norm(chunk, chunk.shape[-1:], norm.weight.to(dtype), norm.eps)
                for chunk, norm in zip(taps.split(widths, -1), self.norms, strict=True)
            ]
            taps = torch.cat(chunks, -1)
        x = nn.functional.linear(
            taps, self.fc.weight.to(dtype), None if self.fc.bias is None else self.fc.bias.to(dtype)
        )
        for module in self.mlp:
            linear = isinstance(module, nn.Linear)
            x = (
                nn.functional.linear(x, module.weight.to(dtype), module.bias.to(dtype))
                if linear
                else module(x)
            )
        return x


def make_modules(
    k: int = 24,
    h: int = 20,
    hidden: tuple[int, ...] = (16, 12),
    actions: int = 7,
    *,
    activation: str = "tanh",
    norm_chunks: int = 3,
    bias: bool = True,
    horizon: int = 1,
    seed: int = 0,
) -> Modules:
    """Return random modules whose logits differ clearly from row to row."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    width = h
    for size in hidden:
        layers += [nn.Linear(width, size), ACTIVATIONS[activation]()]
        width = size
    layers.append(nn.Linear(width, horizon * actions))
    with torch.no_grad():
        layers[-1].weight.mul_(10)
    norms = [Norm(3 * k // norm_chunks) for _ in range(norm_chunks)]
    trees = [[2 + action, action % 4, 1 + action] for action in range(actions)]
    return Modules(nn.Linear(3 * k, h, bias=bias), norms, nn.Sequential(*layers), trees)


def with_lookup(weights: PolicyWeights) -> PolicyWeights:
    """Return a policy whose actions look up tokens, too."""
    looked_up = torch.arange(weights.num_actions, dtype=torch.int32)[:, None]
    return replace(weights, actions=torch.cat((weights.actions, looked_up), 1))


def make_features(
    rows: int, k: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Return low, mid and high of growing size, as a model's are."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(rows, k, generator=generator) * scale).to(dtype) for scale in (1.0, 3.0, 9.0)
    ]
