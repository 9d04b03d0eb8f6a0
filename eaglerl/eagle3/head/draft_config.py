"""Configuration of an EAGLE-3 draft head."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eaglerl.eagle3.head.draft_config_file import NormOutputConvention, read_config_fields
from eaglerl.eagle3.head.feature_layers import (
    AuxLayerConvention,
    as_feature_layers,
    eagle_feature_layers,
)
from eaglerl.json_file import JsonObject, read_json
from eaglerl.regular_file import naming

_SIZE_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "draft_vocab_size",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class Eagle3Config:
    """Sizes and switches of an EAGLE-3 draft head.

    Attributes:
        hidden_size: width h of the draft layer.
        intermediate_size: width of the SwiGLU block.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads; divides ``num_attention_heads``.
        head_dim: width of one head, which need not be ``hidden_size / num_attention_heads``.
        vocab_size: the target's vocabulary V.
        draft_vocab_size: the draft's vocabulary Vd; equal to V means no pruning.
        max_position_embeddings: positions that the head was made for.
        rms_norm_eps: epsilon of every RMSNorm.
        rope_parameters: ``rope_type``, ``rope_theta`` and the parameters of the type.
        target_hidden_size: width k of the target, if the file gives it; the head then owns its
            embedding table. None for k = h.
        fc_norm: one RMSNorm for each of the three feature chunks, before ``fc`` (EAGLE-3.1).
        norm_before_fc: one RMSNorm over the concatenated features (``input_norm``), before ``fc``.
        norm_before_residual: the residual starts from the normed feature, not from the raw one.
        norm_output: the final norm is applied before ``lm_head``.
        norm_feedback: the normed output, not the raw one, is the next pass's feature (EAGLE-3.1).
        qk_norm: one RMSNorm over every head of q and one over every head of k, before RoPE, as in
            Qwen3's layers.
        sliding_window: positions that a row sees, its own included; None for all.
        feature_layers: the three feature layers as indices into transformers' ``hidden_states``
            (i is the input of layer i), or None for EAGLE's rule, see `resolve_feature_layers`.
        tie_word_embeddings: without ``lm_head.weight`` in the checkpoint, the embedding table is
            used instead; with it, the head has an LM head of its own all the same.
        token_ids: the ``bos_token_id``, ``eos_token_id`` and ``pad_token_id`` of the file, kept so
            that they survive a round trip.
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    draft_vocab_size: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_parameters: Mapping[str, Any] = field(
        default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0}
    )
    target_hidden_size: int | None = None
    fc_norm: bool = False
    norm_before_fc: bool = False
    norm_before_residual: bool = False
    norm_output: bool = True
    norm_feedback: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    feature_layers: tuple[int, int, int] | None = None
    tie_word_embeddings: bool = False
    token_ids: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in _SIZE_KEYS:
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{key} must be a positive integer, got {value!r}")
        width = self.target_hidden_size
        if width is not None and (type(width) is not int or width < 1):
            raise ValueError(
                f"target_hidden_size must be a positive integer or null, got {width!r}"
            )
        window = self.sliding_window
        if window is not None and (type(window) is not int or window < 1):
            raise ValueError(f"sliding_window must be a positive integer or null, got {window!r}")
        if not isinstance(self.rms_norm_eps, float) or not 0 < self.rms_norm_eps < math.inf:
            raise ValueError(f"rms_norm_eps must be a positive float, got {self.rms_norm_eps!r}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                "num_attention_heads must be a multiple of num_key_value_heads, got "
                f"{self.num_attention_heads} and {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for RoPE, got {self.head_dim}")
        if self.draft_vocab_size > self.vocab_size:
            raise ValueError(
                f"draft_vocab_size must be at most vocab_size, got {self.draft_vocab_size} and "
                f"{self.vocab_size}"
            )
        self._check_switches()
        if self.feature_layers is not None:
            as_feature_layers(self.feature_layers, "feature_layers")

    def _check_switches(self) -> None:
        if self.fc_norm and self.norm_before_fc:
            raise ValueError(
                "fc_norm and norm_before_fc exclude each other: the features are normed in three "
                "chunks or as one, got both"
            )
        if self.norm_feedback and not self.norm_output:
            raise ValueError(
                "norm_feedback needs norm_output: the fed back vector is the normed output"
            )

    @property
    def feature_hidden_size(self) -> int:
        """Width k of the hidden states of one layer of the target."""
        return self.target_hidden_size or self.hidden_size

    @property
    def owns_embedding(self) -> bool:
        """Whether the checkpoint must hold ``embed_tokens.weight``."""
        return self.target_hidden_size is not None

    @property
    def prunes_vocabulary(self) -> bool:
        """Whether draft ids differ from target ids, so that d2t and t2d are needed."""
        return self.draft_vocab_size < self.vocab_size

    def resolve_feature_layers(self, num_target_layers: int) -> tuple[int, int, int]:
        """Return the feature layers for a target with ``num_target_layers`` layers.

        Args:
            num_target_layers: N, the target's number of decoder layers.

        Returns:
            Low, mid and high index into transformers' ``hidden_states``; (2, N // 2, N - 3), as in
            EAGLE, if the head names none.

        Raises:
            ValueError: the three are not distinct, or not inputs of layers that the target has.
        """
        layers = self.feature_layers
        if layers is None:
            layers = eagle_feature_layers(num_target_layers)
            origin = f"EAGLE's default feature layers (2, N // 2, N - 3) at N = {num_target_layers}"
        else:
            origin = "feature_layers"
        as_feature_layers(layers, origin)
        if max(layers) >= num_target_layers:
            raise ValueError(
                f"{origin} must be inputs of the target's {num_target_layers} layers, "
                f"0..{num_target_layers - 1}, got {list(layers)}"
            )
        return layers

    def without_default_layers(self, num_target_layers: int) -> "Eagle3Config":
        """Return the configuration without feature layers, if they are the target's default ones.

        Engines read the same ids as different layers, but agree on the layers when there are none.

        Args:
            num_target_layers: N, the target's number of decoder layers.
        """
        if self.feature_layers != eagle_feature_layers(num_target_layers):
            return self
        return self.replace(feature_layers=None)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        feature_layers: Sequence[int] | None = None,
        aux_layer_convention: AuxLayerConvention | None = None,
        norm_output_convention: NormOutputConvention | None = None,
    ) -> "Eagle3Config":
        """Read ``config.json`` in the folder ``path``; see `from_dict`."""
        file = Path(path) / "config.json"
        if not os.path.lexists(file):
            raise ValueError(f"path must be a folder with a config.json, got {str(path)!r}")
        data = read_json(file, JsonObject, "draft head's config")
        with naming(f"the draft head's config {str(file)!r}"):
            return cls.from_dict(
                data,
                feature_layers=feature_layers,
                aux_layer_convention=aux_layer_convention,
                norm_output_convention=norm_output_convention,
            )

    @classmethod
    def from_dict(
        cls,
        data: Mapping[str, Any],
        *,
        feature_layers: Sequence[int] | None = None,
        aux_layer_convention: AuxLayerConvention | None = None,
        norm_output_convention: NormOutputConvention | None = None,
    ) -> "Eagle3Config":
        """Read the content of a ``config.json`` in any of the three layouts.

        Args:
            data: the parsed JSON object.
            feature_layers: the feature layers by their inputs, whatever the file says.
            aux_layer_convention: what ``eagle_aux_hidden_state_layer_ids`` name: "output" of the
                layers or "input". None: by the rules of `read_feature_layers`.
            norm_output_convention: what ``norm_output`` means: "logits" (the final norm is
                applied before ``lm_head``; early SpecForge) or "feedback" (the normed output
                is fed back; speculators, vLLM, SGLang, later SpecForge). None: "feedback" in the
                speculators layout, else "logits", with a warning if the key is there.

        Returns:
            The configuration.

        Raises:
            ValueError: a key is missing, malformed, or asks for something unsupported.
        """
        return cls(
            **read_config_fields(
                data,
                feature_layers=feature_layers,
                aux_layer_convention=aux_layer_convention,
                norm_output_convention=norm_output_convention,
            )
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the EAGLE layout's ``config.json``, readable by EAGLE, SpecForge and eaglerl.

        The ``eaglerl_*`` keys state what the common keys leave to convention, and take precedence
        when eaglerl reads the file.
        """
        rope = dict(self.rope_parameters)
        rope_scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        data: dict[str, Any] = {
            "architectures": ["LlamaForCausalLMEagle3"],
            "model_type": "qwen3" if self.qk_norm else "llama",
            "num_hidden_layers": 1,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            **{key: getattr(self, key) for key in _SIZE_KEYS},
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": rope["rope_theta"],
            "rope_scaling": None if rope["rope_type"] == "default" else rope_scaling,
            **self.token_ids,
        }
        if self.target_hidden_size is not None:
            data["target_hidden_size"] = self.target_hidden_size
        if self.sliding_window is not None:
            data["sliding_window"] = self.sliding_window
            data["use_sliding_window"] = True
            data["layer_types"] = ["sliding_attention"]
        for key in ("fc_norm", "norm_before_fc", "norm_before_residual"):
            if getattr(self, key):
                data[key] = True
        # Without the key every engine applies the norm before lm_head and feeds back the raw
        # output, whichever meaning it gives to the key.
        if self.norm_feedback or not self.norm_output:
            data["norm_output"] = self.norm_feedback
            data["eaglerl_norm_output"] = self.norm_output
            data["eaglerl_norm_feedback"] = self.norm_feedback
        if self.feature_layers is not None:
            data["eaglerl_feature_layers"] = list(self.feature_layers)
            # vLLM reads the first and takes inputs, SGLang the second and takes outputs.
            data["eagle_aux_hidden_state_layer_ids"] = list(self.feature_layers)
            data["eagle_config"] = {
                "eagle_aux_hidden_state_layer_ids": [index - 1 for index in self.feature_layers],
                "use_aux_hidden_state": True,
            }
        return data

    def replace(self, **changes: Any) -> "Eagle3Config":
        """Return a copy with some fields changed, and check it."""
        return dataclasses.replace(self, **changes)
