"""Write a draft head for another engine, with the feature layers where that engine looks for them.

What each engine reads was taken from the source of the release named in `ENGINES`; docs/heads.md
says which engines were run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eaglerl.eagle3.head.draft_checkpoint import write_checkpoint
from eaglerl.eagle3.head.draft_config import Eagle3Config
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.head.feature_layers import FeatureLayers, eagle_feature_layers

_IDS = "eagle_aux_hidden_state_layer_ids"
# Options in which heads differ: the value that every engine runs, and the tensors that belong to
# the option.
_FEATURES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "fc_norm": (False, ("fc_norm.",)),
    "norm_before_fc": (False, ("input_norm.",)),
    "norm_before_residual": (False, ()),
    "norm_feedback": (False, ()),
    "norm_output": (True, ()),
    "qk_norm": (False, ("midlayer.self_attn.q_norm.", "midlayer.self_attn.k_norm.")),
    "sliding_window": (None, ()),
}


@dataclass(frozen=True)
class Engine:
    """How an engine reads a head.

    Attributes:
        name: its name and the release whose source was read.
        reads: the fields of `Eagle3Config` that it honours.
        place: function that adds feature layers other than EAGLE's default ones to a config.
        hints: function that returns what is left for the user to do, a sentence each.
    """

    name: str
    reads: frozenset[str]
    place: Callable[[dict[str, Any], FeatureLayers], None]
    hints: Callable[[Eagle3Config, FeatureLayers | None, int | None], list[str]]


@dataclass(frozen=True)
class ExportedHead:
    """A head that was written for another engine.

    Attributes:
        path: its folder.
        lost: what the engine ignores in this head, a sentence each.
        hints: what the user still has to do, a sentence each.
    """

    path: Path
    lost: tuple[str, ...]
    hints: tuple[str, ...]


def export_head(
    head: Eagle3DraftHead, output: str | Path, engine: str, *, num_target_layers: int | None = None
) -> ExportedHead:
    """Write a head so that an engine takes the features of the layers it was trained on.

    Args:
        head: the head, as `Eagle3DraftHead.from_pretrained` reads it.
        output: folder for ``config.json`` and ``model.safetensors``; created if missing.
        engine: one of `ENGINES`.
        num_target_layers: N, the target's number of layers, if known: EAGLE's default layers are
            then left out of the config.

    Returns:
        The folder, what the engine loses, and what is left to do.

    Raises:
        ValueError: the engine is unknown, or the target does not have the layers.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {list(ENGINES)}, got {engine!r}")
    about, config = ENGINES[engine], head.config
    layers = config.feature_layers
    if num_target_layers is not None:
        layers = config.resolve_feature_layers(num_target_layers)
        if layers == eagle_feature_layers(num_target_layers):
            layers = None
    kept = {
        name: getattr(config, name) if name in about.reads else plain
        for name, (plain, _) in _FEATURES.items()
    }
    if not kept["norm_output"]:
        kept["norm_feedback"] = False
    written = config.replace(feature_layers=None, **kept)
    data = written.to_dict()
    if engine != "eaglerl":
        data = {key: value for key, value in data.items() if not key.startswith("eaglerl_")}
    if layers is not None:
        about.place(data, layers)
    write_checkpoint(output, written, _tensors(head, written), data=data)
    lost = [
        f"{about.name} does not run {_described(name, config)}: the head will draft worse there"
        for name, (plain, _) in _FEATURES.items()
        if getattr(config, name) != plain and name not in about.reads
    ]
    hints = about.hints(config, layers, num_target_layers)
    return ExportedHead(Path(output), tuple(lost), tuple(hints))


def _tensors(head: Eagle3DraftHead, written: Eagle3Config) -> Mapping[str, torch.Tensor]:
    """Return the head's tensors without those of the options that ``written`` leaves out."""
    dropped = tuple(
        prefix
        for name, (_, prefixes) in _FEATURES.items()
        if getattr(written, name) != getattr(head.config, name)
        for prefix in prefixes
    )
    state = head.state_dict()
    if head.owns_embedding and head.embed_tokens is not None:
        state["embed_tokens.weight"] = head.embed_tokens
    return {key: tensor for key, tensor in state.items() if not key.startswith(dropped)}


def _described(name: str, config: Eagle3Config) -> str:
    return {
        "fc_norm": "the three norms before fc (fc_norm)",
        "norm_before_fc": "the norm before fc (norm_before_fc)",
        "norm_before_residual": "a residual that starts after the norm (norm_before_residual)",
        "norm_feedback": "the feedback of normed outputs (norm_output)",
        "norm_output": "logits of outputs that are not normed",
        "qk_norm": "the norms of q and k",
        "sliding_window": f"a sliding window of {config.sliding_window}",
    }[name]


def _place_everywhere(data: dict[str, Any], layers: FeatureLayers) -> None:
    data["eaglerl_feature_layers"] = list(layers)
    _place_for_vllm(data, layers)
    _place_for_sglang(data, layers)


def _place_for_vllm(data: dict[str, Any], layers: FeatureLayers) -> None:
    data[_IDS] = list(layers)


def _place_for_sglang(data: dict[str, Any], layers: FeatureLayers) -> None:
    data["eagle_config"] = {_IDS: [layer - 1 for layer in layers], "use_aux_hidden_state": True}


def _place_nowhere(data: dict[str, Any], layers: FeatureLayers) -> None:
    """Leave the config as it is: the engine does not read the layers from it."""


def _no_hints(config: Eagle3Config, layers: FeatureLayers | None, count: int | None) -> list[str]:
    return []


def _sglang_hints(
    config: Eagle3Config, layers: FeatureLayers | None, count: int | None
) -> list[str]:
    hints = []
    if layers is not None:
        hints.append(
            "SGLang adds one to the ids for Llama, Qwen and most others; for targets of DeepSeek "
            "or gpt-oss compare the layers that it logs"
        )
    if config.sliding_window is not None:
        hints.append(f"start SGLang with --speculative-draft-window-size {config.sliding_window}")
    return hints


def _openvino_hints(
    config: Eagle3Config, layers: FeatureLayers | None, count: int | None
) -> list[str]:
    inputs = layers or (None if count is None else eagle_feature_layers(count))
    if inputs is None:
        return [
            "OpenVINO GenAI takes outputs of the layers in hidden_layers_list; name the target to "
            "see which these are"
        ]
    outputs = [layer - 1 for layer in inputs]
    return [
        f"pass hidden_layers_list={outputs} to the draft model's pipeline: OpenVINO GenAI takes "
        "the outputs of these layers, and by default those of 2, N / 2 and N - 3, one later"
    ]


def _llama_cpp_hints(
    config: Eagle3Config, layers: FeatureLayers | None, count: int | None
) -> list[str]:
    hints = ["convert it with llama.cpp's convert_hf_to_gguf.py and --target-model-dir TARGET"]
    if layers is not None:
        hints.append(
            "the converter writes EAGLE's default layers whatever the head says: set "
            f"eagle3.extract_layers to {list(layers)} in the GGUF file"
        )
    return hints


ENGINES: dict[str, Engine] = {
    "eaglerl": Engine("eaglerl", frozenset(_FEATURES), _place_everywhere, _no_hints),
    "vllm": Engine(
        "vLLM 0.32",
        frozenset(
            {"fc_norm", "norm_before_fc", "norm_before_residual", "norm_feedback", "sliding_window"}
        ),
        _place_for_vllm,
        _no_hints,
    ),
    "sglang": Engine(
        "SGLang 0.5.23",
        frozenset({"fc_norm", "norm_before_fc", "norm_feedback", "sliding_window"}),
        _place_for_sglang,
        _sglang_hints,
    ),
    "openvino": Engine(
        "OpenVINO (optimum-intel 2.2.0)", frozenset(), _place_nowhere, _openvino_hints
    ),
    "llama.cpp": Engine(
        "llama.cpp",
        frozenset({"norm_before_fc", "norm_before_residual"}),
        _place_nowhere,
        _llama_cpp_hints,
    ),
}
