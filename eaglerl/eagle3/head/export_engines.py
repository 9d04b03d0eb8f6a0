"""What other engines read of a draft head: options, feature layers, and what is left to the user.

All of it was taken from the source of the releases named in `ENGINES`; docs/engines.md says which
of them were run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eaglerl.eagle3.head.draft_config import Eagle3Config
from eaglerl.eagle3.head.feature_layers import FeatureLayers, eagle_feature_layers

_IDS = "eagle_aux_hidden_state_layer_ids"
#: Options in which heads differ: the value that every engine runs, and the tensors that belong to
#: the option.
FEATURES: dict[str, tuple[Any, tuple[str, ...]]] = {
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
        own_width: whether a head may be of another width than its target.
        needs_maps: whether a head without a vocabulary of its own must have ``d2t`` all the same.
    """

    name: str
    reads: frozenset[str]
    place: Callable[[dict[str, Any], FeatureLayers], None]
    hints: Callable[[Eagle3Config, FeatureLayers | None, int | None], list[str]]
    own_width: bool = True
    needs_maps: bool = False


def described(name: str, config: Eagle3Config) -> str:
    """Return an option of a head in words; ``name`` is a key of `FEATURES`."""
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
    _place_inputs(data, layers)
    _place_for_sglang(data, layers)


def _place_inputs(data: dict[str, Any], layers: FeatureLayers) -> None:
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
    outputs = "the outputs of its layers" if inputs is None else [layer - 1 for layer in inputs]
    return [
        "convert it with optimum-cli export openvino --trust-remote-code --task "
        "text-generation-with-past; this also needs diffusers below 0.38 and einops",
        f"write hidden_layers_list={outputs} into the converted model, as docs/engines.md shows: "
        "OpenVINO GenAI takes the outputs of these layers, and by default those of 2, N / 2 and "
        "N - 3, which are one later than EAGLE's",
    ]


def _llama_cpp_hints(
    config: Eagle3Config, layers: FeatureLayers | None, count: int | None
) -> list[str]:
    return ["convert it with llama.cpp's convert_hf_to_gguf.py and --target-model-dir TARGET"]


ENGINES: dict[str, Engine] = {
    "eaglerl": Engine("eaglerl", frozenset(FEATURES), _place_everywhere, _no_hints),
    "vllm": Engine(
        "vLLM 0.32",
        frozenset(
            {"fc_norm", "norm_before_fc", "norm_before_residual", "norm_feedback", "sliding_window"}
        ),
        _place_inputs,
        _no_hints,
    ),
    "sglang": Engine(
        "SGLang 0.5.23",
        frozenset({"fc_norm", "norm_before_fc", "norm_feedback", "sliding_window"}),
        _place_for_sglang,
        _sglang_hints,
    ),
    "openvino": Engine(
        "OpenVINO (optimum-intel 2.2.0)",
        frozenset(),
        _place_nowhere,
        _openvino_hints,
        # It traces the head with features of the head's own width.
        own_width=False,
        # Without d2t it takes what lies in memory for it.
        needs_maps=True,
    ),
    "llama.cpp": Engine(
        "llama.cpp (in llama-cpp-python 0.3.36)",
        frozenset({"norm_before_fc", "norm_before_residual"}),
        _place_inputs,
        _llama_cpp_hints,
    ),
}
