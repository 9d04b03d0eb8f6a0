"""The data of a policy: tensors and settings, without checks and factories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from eaglerl._renamed import RenamedAttribute

Activation = Literal["tanh", "relu", "silu"]
MlpInput = Literal["features", "taps"]

_REQUIRED = ("output_weight", "output_bias", "bins")
_OPTIONAL = ("fc_weight", "fc_bias", "norm_weight")
_LISTS = ("hidden_weights", "hidden_biases")
# Fields whose tensor has another name in a file: format 1 has it.
_FILE_NAMES = {"actions": "bins"}


@dataclass(frozen=True, eq=False)
class PolicyFields:
    """Fields of `eaglerl.ops.PolicyWeights`, which documents and checks them."""

    hidden_weights: tuple[Tensor, ...]
    hidden_biases: tuple[Tensor, ...]
    output_weight: Tensor
    output_bias: Tensor
    actions: Tensor
    fc_weight: Tensor | None = None
    fc_bias: Tensor | None = None
    norm_weight: Tensor | None = None
    norm_chunks: int = 0
    eps: float = 1e-6
    activation: Activation = "tanh"
    mlp_input: MlpInput = "features"
    horizon: int = 1
    fallback_action: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden_weights", tuple(self.hidden_weights))
        object.__setattr__(self, "hidden_biases", tuple(self.hidden_biases))

    @property
    def num_actions(self) -> int:
        """A, the number of actions."""
        return self.actions.shape[0]

    @property
    def action_columns(self) -> int:
        """Number of parameters of an action: 3, or 4 with lookup_tokens."""
        return self.actions.shape[1]

    @property
    def mlp_in_features(self) -> int:
        """Width of the MLP's input."""
        return self.hidden_weights[0].shape[1]

    @property
    def feature_size(self) -> int | None:
        """h, the width of g; None for a policy that does not compute or read g."""
        return self.mlp_in_features if self.mlp_input == "features" else None

    @property
    def joined_size(self) -> int | None:
        """3k, the width of [low | mid | high]; None for a policy of reduced features."""
        if self.fc_weight is not None:
            return self.fc_weight.shape[1]
        return self.mlp_in_features if self.mlp_input == "taps" else None

    taps_size = RenamedAttribute("joined_size")

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the matrices."""
        return self.output_weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of all tensors."""
        return self.output_weight.device

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Move all tensors and convert the matrices; biases and norms stay float32.

        With float64, which only the reference supports, they become float64 too.
        """
        wide = torch.float64 if dtype == torch.float64 else torch.float32

        def moved(name: str, tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor.to(device)
            narrow = name.endswith("_bias") or name.startswith(("hidden_biases", "norm"))
            return tensor.to(device, wide if narrow else dtype or tensor.dtype)

        tensors = {name: moved(name, tensor) for name, tensor in self.tensors().items()}
        return replace(self, **gather_fields(tensors))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are not None, by their names in a file."""
        return {_FILE_NAMES.get(name, name): t for name, t in self.named_tensors().items()}

    def named_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are not None, by the names of their fields."""
        named = {
            name: getattr(self, name)
            for name in ("output_weight", "output_bias", "actions", "fc_weight", "fc_bias")
        }
        named["norm_weight"] = self.norm_weight
        for field in ("hidden_weights", "hidden_biases"):
            named |= {f"{field}.{i}": tensor for i, tensor in enumerate(getattr(self, field))}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def gather_fields(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Turn tensors, by their names in a file, into the fields of a `PolicyWeights`.

    Raises:
        ValueError: a tensor is missing or unknown.
    """
    fields: dict[str, Any] = {name: tensors[name] for name in _REQUIRED if name in tensors}
    fields |= {name: tensors[name] for name in _OPTIONAL if name in tensors}
    known = set(fields)
    for field in _LISTS:
        parts: list[Tensor] = []
        while (key := f"{field}.{len(parts)}") in tensors:
            parts.append(tensors[key])
            known.add(key)
        fields[field] = tuple(parts)
    missing, unknown = set(_REQUIRED) - known, tensors.keys() - known
    if missing or unknown:
        raise ValueError(f"missing tensors: {sorted(missing)}, unknown: {sorted(unknown)}")
    for field, file_name in _FILE_NAMES.items():
        fields[field] = fields.pop(file_name)
    return fields
