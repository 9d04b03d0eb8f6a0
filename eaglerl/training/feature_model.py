"""The target over whole sequences, for the features that a draft head learns from."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from eaglerl.eagle3.target.target_files import decoder_layers, load_transformers_model
from eaglerl.eagle3.target.target_model import checked_feature_layers, default_feature_layers

# Activations of 2,048 tokens fit the last-level cache of a desktop or server CPU.
BATCH_TOKENS = 2048


class SequenceFeatures(NamedTuple):
    """The target's hidden states over one sequence of L tokens.

    Attributes:
        features: (L, 3k) fp16 inputs of the three feature layers, [low | mid | high].
        final_hidden: (L, k) fp16 output of the final norm. Either is bfloat16 if its values exceed
            the range of fp16, as the residual stream of some families does.
    """

    features: torch.Tensor
    final_hidden: torch.Tensor


class FeatureModel:
    """A target without its output layer, with hooks on the feature layers."""

    def __init__(
        self,
        model: PreTrainedModel,
        feature_layers: tuple[int, int, int] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Prepare a loaded model; its linear layers are replaced if ``dtype`` is not theirs.

        Args:
            model: a causal LM of transformers in fp32. It is changed: use it for nothing else.
            feature_layers: indices into ``hidden_states``; None for EAGLE's rule.
            dtype: dtype of the linear layers' products. The residual stream, the norms and
                attention stay fp32: in a bf16 residual stream, a few channels with values in the
                thousands drown out the low bits that distinguish tokens.

        Raises:
            ValueError: the layers do not fit the model.
        """
        layers = model.config.num_hidden_layers
        self.feature_layers = (
            default_feature_layers(layers)
            if feature_layers is None
            else checked_feature_layers(feature_layers, layers)
        )
        self._layers = decoder_layers(model)
        self._decoder = model.get_decoder().eval()
        self._features: dict[int, torch.Tensor] = {}
        if dtype != torch.float32:
            _replace_linears(self._decoder, dtype)
        for place, index in enumerate(self.feature_layers):
            self._layers[index].register_forward_pre_hook(self._make_hook(place), with_kwargs=True)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        feature_layers: tuple[int, int, int] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> "FeatureModel":
        """Load the target in the folder ``path``; see the constructor."""
        model = load_transformers_model(path, torch.float32)
        return cls(model, feature_layers, dtype=dtype)

    @torch.inference_mode()
    def __call__(self, sequences: Sequence[Sequence[int]]) -> list[SequenceFeatures]:
        """Return the features of token sequences, in their order."""
        results: dict[int, SequenceFeatures] = {}
        for batch in _batches_by_length([len(ids) for ids in sequences]):
            longest = max(len(sequences[index]) for index in batch)
            # Attention is causal: no token sees the padding on its right, so no mask is needed.
            input_ids = torch.zeros(len(batch), longest, dtype=torch.int64)
            for row, index in enumerate(batch):
                input_ids[row, : len(sequences[index])] = torch.tensor(sequences[index])
            final_hidden = self._decoder(input_ids=input_ids, use_cache=False).last_hidden_state
            features = torch.cat([self._features.pop(place) for place in range(3)], dim=-1)
            for row, index in enumerate(batch):
                length = len(sequences[index])
                results[index] = SequenceFeatures(
                    _stored(features[row, :length]), _stored(final_hidden[row, :length])
                )
        return [results[index] for index in range(len(sequences))]

    def _make_hook(self, place: int) -> Callable[[nn.Module, tuple, dict], None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            self._features[place] = args[0] if args else kwargs["hidden_states"]

        return hook


def _stored(hidden: torch.Tensor) -> torch.Tensor:
    half = hidden.half()
    return half if bool(half.isfinite().all()) else hidden.bfloat16()


class _CastLinear(nn.Module):
    """A linear layer whose product runs in another dtype; input and output stay fp32."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().to(dtype))
        bias = linear.bias
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


def _replace_linears(module: nn.Module, dtype: torch.dtype) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, _CastLinear(child, dtype))
        else:
            _replace_linears(child, dtype)


def _batches_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Group sequences of similar length, so that little padding is needed."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        # The first of a batch is its longest.
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= BATCH_TOKENS:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
