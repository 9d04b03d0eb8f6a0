"""Heads for a user's own targets: shallow ones, other families, base models."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from eaglerl.eagle3 import Eagle3Config, SpeculativeDecoder, TreeParams
from eaglerl.eagle3.prompt_inputs import all_read
from eaglerl.training.distill import distill
from eaglerl.training.initial_head import logit_scale
from eaglerl.training.prompt_pieces import prompt_pieces
from eaglerl.training.train_draft import train_draft
from eaglerl.training.train_options import TrainOptions

from .test_distill import TEMPLATE, VOCAB, read_rows, tiny_tokenizer

SLOWER = "transformers' modules, which is slower"
OPTIONS = {
    "draft_vocab_size": 20,
    "batch_tokens": 64,
    "ttt_steps": 2,
    "steps": 3,
    "dtype": "float32",
    "head_dtype": "float32",
}


def make_model(family: str, **changes):
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCAB,
        "max_position_embeddings": 512, "initializer_range": 0.3, "bos_token_id": 0,
        "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    config = AutoConfig.for_model(family, **(sizes | changes))
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def save_target(path: Path, family: str, *, template: str | None = TEMPLATE, **changes) -> Path:
    make_model(family, **changes).save_pretrained(path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(path)
    return path


def write_data(target: Path, path: Path, **changes) -> Path:
    arguments = {"slots": 8, "max_new_tokens": 12, "dtype": "float32", "openings": ("abc",)}
    distill(target, path, response_tokens=900, **(arguments | changes))
    return path


def train(target: Path, data: Path, folder: Path, **changes):
    options = TrainOptions(**(OPTIONS | changes))
    return train_draft(target, [data], folder / "features", folder / "run", options)


def assert_lossless(target: Path, head: Path) -> None:
    """Greedy decoding with the head is that of transformers' own generate."""
    decoder = SpeculativeDecoder.from_pretrained(target, head)
    model = AutoModelForCausalLM.from_pretrained(target)
    for prompt in ([0, 2, 5, 6, 7, 1, 0, 3], [0, 2, 30, 30, 8, 1, 0, 3]):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24
        )
        output = decoder.generate(all_read(prompt), TreeParams(8, 2, 4), max_new_tokens=24)
        assert output.sequences.tolist() == expected.tolist()


def test_a_shallow_target_needs_its_layers_named(tmp_path: Path) -> None:
    target = save_target(tmp_path / "target", "llama")
    data = write_data(target, tmp_path / "rows.jsonl", feature_layers=(0, 1, 3))
    with pytest.raises(ValueError, match=r"no three layers .* \(--feature-layers\), such as 0,2,3"):
        train(target, data, tmp_path)
    assert not (tmp_path / "run").exists()
    result = train(target, data, tmp_path, feature_layers=(0, 1, 3))
    config = Eagle3Config.from_pretrained(result.head_path)
    assert config.resolve_feature_layers(4) == (0, 1, 3)
    assert_lossless(target, result.head_path)
    # A head that is trained further keeps its layers.
    more = tmp_path / "more"
    second = train(target, data, more, initial_head=str(result.head_path))
    assert Eagle3Config.from_pretrained(second.head_path).resolve_feature_layers(4) == (0, 1, 3)


@pytest.mark.parametrize("layers", [(0, 1, 4), (0, 0, 1)])
def test_layers_that_do_not_fit_are_refused_before_anything(layers, tmp_path: Path) -> None:
    target = save_target(tmp_path / "target", "llama")
    with pytest.raises(ValueError, match="feature_layers must"):
        write_data(target, tmp_path / "rows.jsonl", feature_layers=layers)
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gemma3_text", {"sliding_window": 16}),
        pytest.param("gemma2", {"sliding_window": 16}, marks=pytest.mark.slow),
        pytest.param("mistral", {"sliding_window": 16}, marks=pytest.mark.slow),
        pytest.param("olmo2", {}, marks=pytest.mark.slow),
        pytest.param("cohere", {}, marks=pytest.mark.slow),
        pytest.param("phi3", {}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:.*behind the output layer")
def test_families_that_are_not_packed(family: str, changes, tmp_path: Path) -> None:
    target = save_target(tmp_path / "target", family, num_hidden_layers=7, **changes)
    with pytest.warns(UserWarning, match=SLOWER):
        data = write_data(target, tmp_path / "rows.jsonl")
    rows = read_rows(data)
    model = AutoModelForCausalLM.from_pretrained(target)
    greedy = [row["r"] == greedy_answer(model, row["p"]) for row in rows[:20]]
    # Two thirds are greedy, within four standard deviations of that many rows.
    assert abs(sum(greedy) / 20 - 2 / 3) < 4 * (2 / 9 / 20) ** 0.5
    result = train(target, data, tmp_path)
    assert all(map(math.isfinite, result.validation.step_losses))
    with pytest.warns(UserWarning, match=SLOWER):
        assert_lossless(target, result.head_path)


def greedy_answer(model, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12
    )
    return out[0, len(prompt) :].tolist()


def test_a_base_model_writes_plain_texts(tmp_path: Path) -> None:
    target = save_target(tmp_path / "target", "llama", template=None)
    with pytest.warns(UserWarning, match="no chat template: prompts are beginnings"):
        data = write_data(target, tmp_path / "rows.jsonl")
    rows = read_rows(data)
    opening = tiny_tokenizer()("abc").input_ids
    assert {row["p"][0] for row in rows} == {0}
    assert 0 < sum(row["p"][1:4] == opening for row in rows) < len(rows)
    assert all(1 not in row["p"] for row in rows)
    assert all(row["r"][-1] == 1 or len(row["r"]) == 12 for row in rows)
    result = train(target, data, tmp_path, feature_layers=(1, 2, 3))
    assert_lossless(target, result.head_path)


def test_a_text_must_have_a_beginning() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a bos_token nor an eos_token"):
        prompt_pieces(tokenizer)


def test_a_turn_change_of_one_token_ends_the_prompt(tmp_path: Path) -> None:
    template = "<user>{{ messages[0]['content'] }}<bot>"
    target = save_target(tmp_path / "target", "llama", template=template)
    for row in read_rows(write_data(target, tmp_path / "rows.jsonl")):
        assert row["p"][0] == 2
        assert row["p"][-1] == 3
        assert len(row["p"]) <= 200


def test_all_tokens_that_end_a_turn_count(tmp_path: Path) -> None:
    target = save_target(tmp_path / "target", "llama")
    path = target / "generation_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"eos_token_id": [1, 9]}))
    for row in read_rows(write_data(target, tmp_path / "rows.jsonl")):
        assert not {1, 9} & set(row["r"][:-1])
        assert row["r"][-1] in (1, 9) or len(row["r"]) == 12


def test_a_short_context_is_kept_to(tmp_path: Path) -> None:
    target = save_target(tmp_path / "target", "llama", max_position_embeddings=64)
    with pytest.raises(ValueError, match=r"max_new_tokens must be at most 42, .* context of 64"):
        write_data(target, tmp_path / "rows.jsonl", max_new_tokens=43)
    data = write_data(target, tmp_path / "rows.jsonl", max_new_tokens=42)
    assert max(len(row["p"]) + len(row["r"]) for row in read_rows(data)) <= 64


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"got \[0, 0\] of two tokens or more among 0"),
        ([{"p": [1, 2], "r": [3, 4]}], r"got \[1, 0\] .* among 1: a tenth of the prompts"),
        ([{"p": [i], "r": [3]} for i in range(40)], r"got \[0, 0\] of two tokens .* among 40"),
    ],
)
def test_too_little_data_says_what_to_do(rows, message: str, tmp_path: Path, tiny_target) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=rf"{message}.*larger --response-tokens"):
        train(tiny_target, data, tmp_path)
    assert not (tmp_path / "run").exists()


def test_scales_of_logits() -> None:
    assert logit_scale(make_model("llama")) == 1.0
    assert logit_scale(make_model("cohere", logit_scale=0.25)) == pytest.approx(0.25, rel=1e-5)
    model = make_model("gemma2", final_logit_softcapping=0.5)
    with pytest.warns(UserWarning, match="after the output layer"):
        assert logit_scale(model) == 1.0


def test_values_that_fp16_cannot_hold(tmp_path: Path) -> None:
    target = save_target(tmp_path / "target", "llama")
    model = AutoModelForCausalLM.from_pretrained(target)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1e6)
    model.save_pretrained(target)
    data = write_data(target, tmp_path / "rows.jsonl")
    result = train(target, data, tmp_path, feature_layers=(1, 2, 3))
    assert all(map(math.isfinite, result.validation.step_losses))
    (shard, *_) = (tmp_path / "features").glob("*.safetensors")
    assert load_file(shard)["taps"].dtype == torch.bfloat16
