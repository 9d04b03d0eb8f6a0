"""Configurations in the three layouts, and every way in which they can be wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen3Config

from eaglerl.eagle3.head.draft_config import Eagle3Config
from eaglerl.prepare import default_draft_path

from ..heads import eagle_json, make_config, specforge_json, speculators_json

SAME_FIELDS = ("hidden_size", "intermediate_size", "head_dim", "vocab_size", "draft_vocab_size")


def speculators(**changes: Any) -> dict[str, Any]:
    return speculators_json(make_config()) | changes


def nested(**changes: Any) -> dict[str, Any]:
    data = speculators_json(make_config())
    return data | {"transformer_layer_config": data["transformer_layer_config"] | changes}


def flat(**changes: Any) -> dict[str, Any]:
    return eagle_json(make_config()) | changes


def test_eagle_layout() -> None:
    config = Eagle3Config.from_dict(flat())
    assert config == make_config(
        token_ids={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    )
    assert config.feature_layers is None
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert not config.owns_embedding
    assert config.feature_hidden_size == config.hidden_size


def test_specforge_layout() -> None:
    config = Eagle3Config.from_dict(specforge_json(make_config()))
    # Outputs of layers 1, 4, 8 are inputs of layers 2, 5, 9.
    assert config.feature_layers == (2, 5, 9)


def test_speculators_layout() -> None:
    config = Eagle3Config.from_dict(speculators(), aux_layer_convention="input")
    expected = Eagle3Config.from_dict(specforge_json(make_config()))
    assert config == expected


def test_defaults_of_absent_keys() -> None:
    data = flat(draft_vocab_size=None)
    for key in ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps"):
        del data[key]
    config = Eagle3Config.from_dict(data)
    assert config.num_key_value_heads == config.num_attention_heads
    assert config.head_dim == 8
    assert config.max_position_embeddings == 2048
    assert config.rms_norm_eps == 1e-6
    assert config.draft_vocab_size == config.vocab_size
    assert not config.prunes_vocabulary


def test_layer_ids_of_either_convention() -> None:
    ids = {"eagle_aux_hidden_state_layer_ids": [1, 4, 8]}
    read = Eagle3Config.from_dict
    assert read(flat(eagle_config=ids)).feature_layers == (2, 5, 9)
    assert read(flat(eagle_config=ids), aux_layer_convention="input").feature_layers == (1, 4, 8)
    top = speculators(**ids)
    assert read(top, aux_layer_convention="output").feature_layers == (2, 5, 9)
    # speculators' trainer and vLLM mean inputs; of a flat file the producer is unknown.
    assert read(top).feature_layers == (1, 4, 8)
    with pytest.warns(UserWarning, match=r"\[1, 4, 8\] .* read as inputs .*--taps"):
        assert read(flat(**ids)).feature_layers == (1, 4, 8)
    assert read(flat(**ids), aux_layer_convention="output").feature_layers == (2, 5, 9)
    assert read(flat(**ids), feature_layers=[3, 4, 5]).feature_layers == (3, 4, 5)
    assert read(flat(eagle_config={"layer_ids": [1, 4, 8]})).feature_layers == (1, 4, 8)
    # NVIDIA ModelOpt writes an empty list for the default.
    empty = {"eagle_aux_hidden_state_layer_ids": []}
    assert read(flat(eagle_config=empty)).feature_layers is None
    both = flat(eagle_config=ids, eagle_aux_hidden_state_layer_ids=[2, 5, 9])
    assert read(both).feature_layers == (2, 5, 9)
    own = flat(eagle_config=ids, eaglerl_feature_layers=[3, 4, 5])
    assert read(own, aux_layer_convention="input").feature_layers == (3, 4, 5)


SLIDING, FULL = ["sliding_attention"], ["full_attention"]
WINDOWS: dict[str, tuple[dict[str, Any], int | None]] = {
    "none": ({}, None),
    "alone": ({"sliding_window": 8}, 8),
    "switched off": ({"sliding_window": 8, "use_sliding_window": False}, None),
    "switched on": ({"sliding_window": 8, "use_sliding_window": True}, 8),
    "typed": ({"sliding_window": 8, "use_sliding_window": True, "layer_types": SLIDING}, 8),
    "typed full": ({"sliding_window": 8, "use_sliding_window": True, "layer_types": FULL}, None),
    # Qwen3 slides only where it is told to, and only from a layer of that number on.
    "qwen3": ({"model_type": "qwen3", "sliding_window": 8}, None),
    "qwen3 above": ({"model_type": "qwen3", "sliding_window": 8, "use_sliding_window": True}, None),
    "qwen3 all": (
        {
            "model_type": "qwen3",
            "sliding_window": 8,
            "use_sliding_window": True,
            "max_window_layers": 0,
        },
        8,
    ),
    "qwen3 typed": ({"model_type": "qwen3", "sliding_window": 8, "layer_types": SLIDING}, None),
    "qwen3 typed and told": (
        {
            "model_type": "qwen3",
            "sliding_window": 8,
            "use_sliding_window": True,
            "layer_types": SLIDING,
        },
        8,
    ),
}


@pytest.mark.parametrize("case", WINDOWS)
def test_sliding_windows(case: str) -> None:
    fields, window = WINDOWS[case]
    for config in (
        Eagle3Config.from_dict(flat(**fields)),
        Eagle3Config.from_dict(nested(**fields), aux_layer_convention="input"),
    ):
        assert config.sliding_window == window
        assert config.qk_norm == ("model_type" in fields)
        again = Eagle3Config.from_dict(config.to_dict(), aux_layer_convention="input")
        assert again.sliding_window == window
    if "model_type" in fields:
        # As transformers reads the same fields.
        theirs = Qwen3Config(num_hidden_layers=1, **fields)
        slides = theirs.layer_types == SLIDING
        assert (theirs.sliding_window if slides else None) == window


def test_default_feature_layers() -> None:
    config = make_config()
    assert config.resolve_feature_layers(32) == (2, 16, 29)
    assert config.resolve_feature_layers(7) == (2, 3, 4)
    for too_few in (4, 5, 6):
        with pytest.raises(ValueError, match=f"three different layers.*|N = {too_few}"):
            config.resolve_feature_layers(too_few)


def test_explicit_feature_layers() -> None:
    config = make_config(feature_layers=(0, 2, 5))
    assert config.resolve_feature_layers(6) == (0, 2, 5)
    with pytest.raises(ValueError, match=r"target's 5 layers.*\[0, 2, 5\]"):
        config.resolve_feature_layers(5)


def test_norm_output_of_either_convention() -> None:
    read = Eagle3Config.from_dict
    plain = (True, False)

    def switches(data: dict[str, Any], **arguments: Any) -> tuple[bool, bool]:
        config = read(data, **arguments)
        return config.norm_output, config.norm_feedback

    assert switches(flat()) == plain
    assert switches(flat(norm_output=None)) == plain
    with pytest.warns(UserWarning, match="norm_output_convention"):
        assert switches(flat(norm_output=True)) == plain
    with pytest.warns(UserWarning, match="norm_output_convention"):
        assert switches(flat(norm_output=False)) == (False, False)
    for value, expected in ((True, plain), (False, (False, False))):
        data = flat(norm_output=value)
        assert switches(data, norm_output_convention="logits") == expected
    for value, expected in ((True, (True, True)), (False, plain)):
        data = flat(norm_output=value)
        assert switches(data, norm_output_convention="feedback") == expected
        data = speculators(norm_output=value)
        assert switches(data, aux_layer_convention="input") == expected


def test_flags_inside_eagle_config() -> None:
    assert Eagle3Config.from_dict(flat(eagle_config={"norm_before_fc": True})).norm_before_fc


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fc_norm": True, "feature_layers": (0, 15, 27)},
        {"norm_before_fc": True, "norm_before_residual": True},
        {"norm_output": False},
        {"norm_feedback": True},
        {"target_hidden_size": 20, "draft_vocab_size": 60},
        {"token_ids": {"bos_token_id": 1, "eos_token_id": [2, 3]}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            }
        },
    ],
)
def test_round_trip(changes: dict[str, Any]) -> None:
    """Nothing is lost on the way through JSON, and nothing has to be guessed (no warning)."""
    config = make_config(**changes)
    assert Eagle3Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_written_switches_mean_the_same_to_others() -> None:
    """An ordinary head is written without the key on whose meaning engines disagree."""
    assert "norm_output" not in make_config().to_dict()
    assert make_config(norm_feedback=True).to_dict()["norm_output"] is True
    assert make_config(norm_output=False).to_dict()["norm_output"] is False
    written = make_config(feature_layers=(2, 5, 9)).to_dict()
    # SGLang reads these and adds one, vLLM reads the others as they are.
    assert written["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [1, 4, 8]
    assert written["eagle_aux_hidden_state_layer_ids"] == [2, 5, 9]


def test_layers_in_two_places() -> None:
    data = flat(
        eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 4, 8], "layer_ids": [1, 4, 8]}
    )
    with pytest.raises(
        ValueError, match=r"inputs of \[2, 5, 9\] and of \[1, 4, 8\]; leave one out"
    ):
        Eagle3Config.from_dict(data)


def test_default_layers_are_not_named() -> None:
    named = make_config(feature_layers=(2, 5, 7))
    written = named.without_default_layers(10).to_dict()
    assert not [key for key in written if "layer" in key and key != "num_hidden_layers"]
    assert "eagle_config" not in written
    assert Eagle3Config.from_dict(written).resolve_feature_layers(10) == (2, 5, 7)
    assert named.without_default_layers(11) is named


def test_the_shipped_head_names_no_layers() -> None:
    config = Eagle3Config.from_pretrained(default_draft_path())
    assert config.feature_layers is None
    assert config.resolve_feature_layers(30) == (2, 15, 27)


def without(key: str) -> dict[str, Any]:
    data = flat()
    del data[key]
    return data


BROKEN: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "no hidden_size": (lambda: without("hidden_size"), "hidden_size.*None"),
    "no heads": (lambda: without("num_attention_heads"), "num_attention_heads"),
    "no intermediate_size": (lambda: without("intermediate_size"), "intermediate_size"),
    "no vocab_size": (lambda: without("vocab_size"), "vocab_size"),
    "negative size": (lambda: flat(hidden_size=-1), "hidden_size.*-1"),
    "text as a size": (lambda: flat(draft_vocab_size="24"), "draft_vocab_size.*'24'"),
    "target_hidden_size": (lambda: flat(target_hidden_size=0), "target_hidden_size.*0"),
    "eps": (lambda: flat(rms_norm_eps="1e-5"), "rms_norm_eps"),
    "groups": (lambda: flat(num_key_value_heads=3), "num_key_value_heads.*4 and 3"),
    "odd head_dim": (lambda: flat(head_dim=15), "head_dim.*15"),
    "draft vocabulary": (lambda: flat(draft_vocab_size=61), "draft_vocab_size.*61 and 60"),
    "both norms": (lambda: flat(fc_norm=True, norm_before_fc=True), "exclude each other"),
    "flag": (lambda: flat(fc_norm="yes"), "fc_norm.*'yes'"),
    "several layers": (lambda: flat(num_hidden_layers=2), "num_hidden_layers.*2.*P-EAGLE"),
    "nested layers": (lambda: nested(num_hidden_layers=4), "num_hidden_layers.*4.*P-EAGLE"),
    "mask_hidden": (lambda: speculators(mask_token_id=5), "mask_token_id.*P-EAGLE"),
    "other speculator": (
        lambda: speculators(speculators_model_type="peagle"),
        "speculators_model_type.*'peagle'",
    ),
    "no nested layer": (
        lambda: speculators(transformer_layer_config=None),
        "transformer_layer_config",
    ),
    "no residual switch": (
        lambda: speculators(norm_before_residual=None),
        "norm_before_residual is missing",
    ),
    "model_type": (lambda: nested(model_type="gemma"), "model_type.*'llama' or 'qwen3'.*'gemma'"),
    "activation": (lambda: flat(hidden_act="gelu"), "hidden_act.*'silu'.*'gelu'"),
    "bias": (lambda: nested(attention_bias=True), "attention_bias"),
    "window": (lambda: flat(sliding_window=-1), "sliding_window.*-1"),
    "window in words": (lambda: flat(sliding_window="wide"), "sliding_window.*'wide'"),
    "kinds of layers": (
        lambda: nested(layer_types=["linear_attention"]),
        "layer_types.*linear_attention",
    ),
    "two kinds": (lambda: nested(layer_types=["full_attention"] * 2), "layer_types"),
    "no window": (lambda: nested(layer_types=["sliding_attention"]), "sliding_window is missing"),
    "tied by a word": (lambda: flat(tie_word_embeddings="yes"), "tie_word_embeddings.*'yes'"),
    "eps of NaN": (lambda: flat(rms_norm_eps=float("nan")), "rms_norm_eps.*nan"),
    "text as a width": (lambda: flat(target_hidden_size="32"), "target_hidden_size.*'32'"),
    "no key heads": (lambda: flat(num_key_value_heads=0), "num_key_value_heads.*0"),
    "no head_dim": (lambda: flat(head_dim=0), "head_dim.*0"),
    "more heads than width": (
        lambda: flat(num_attention_heads=64, head_dim=None),
        "head_dim.*0",
    ),
    "eos as a word": (lambda: flat(eos_token_id="</s>"), "eos_token_id.*'</s>'"),
    "one eos as a word": (lambda: flat(eos_token_id=[2, "end"]), "eos_token_id.*'end'"),
    "own switch": (lambda: flat(eaglerl_norm_output="no"), "eaglerl_norm_output.*'no'"),
    "a number as layers": (
        lambda: flat(eagle_aux_hidden_state_layer_ids=3),
        "eagle_aux_hidden_state_layer_ids.*3",
    ),
    "no features": (
        lambda: flat(eagle_config={"use_aux_hidden_state": False}),
        "use_aux_hidden_state",
    ),
    "eagle_config": (lambda: flat(eagle_config=[1]), "eagle_config"),
    "equal layers": (
        lambda: flat(eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 4, 4]}),
        r"three different layers, got \[1, 4, 4\]",
    ),
    "two layers": (
        lambda: flat(eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 4]}),
        r"three layer indices.*\[1, 4\]",
    ),
    "own layers": (lambda: flat(eaglerl_feature_layers=[1, 2, -3]), "eaglerl_feature_layers"),
    "rope type": (lambda: flat(rope_scaling={"type": "mrope"}), "rope_type.*'mrope'"),
    "rope factor": (lambda: flat(rope_scaling={"type": "linear"}), "factor.*None"),
    "rope in two notations": (
        lambda: flat(
            rope_theta=5e5,
            rope_parameters={"rope_type": "default", "rope_theta": 5e5},
            rope_scaling={"rope_type": "linear", "factor": 2.0},
        ),
        "rope_type is 'default' in the first and 'linear' in the second",
    ),
    "rope theta": (
        lambda: flat(rope_theta=1e6, rope_parameters={"rope_theta": 1e4}),
        "rope_theta",
    ),
    "feedback of nothing": (
        lambda: flat(eaglerl_norm_output=False, eaglerl_norm_feedback=True),
        "norm_feedback",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_configs_are_named(case: str) -> None:
    make, message = BROKEN[case]
    with pytest.raises(ValueError, match=message):
        Eagle3Config.from_dict(make(), aux_layer_convention="output")


def test_unknown_conventions() -> None:
    with pytest.raises(ValueError, match="aux_layer_convention"):
        Eagle3Config.from_dict(flat(), aux_layer_convention="both")
    with pytest.raises(ValueError, match="norm_output_convention"):
        Eagle3Config.from_dict(flat(), norm_output_convention="both")


def test_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json"):
        Eagle3Config.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        Eagle3Config.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="object"):
        Eagle3Config.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(flat()))
    assert Eagle3Config.from_pretrained(tmp_path) == Eagle3Config.from_dict(flat())
