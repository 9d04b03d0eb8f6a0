"""Training that starts from an existing head."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.training.initial_head import make_head, read_initial_head
from eaglerl.training.train_draft import train_draft
from eaglerl.training.train_options import TrainOptions

from .tiny import DRAFT_VOCAB, VOCAB, tiny_config

OPTIONS = {
    "draft_vocab_size": DRAFT_VOCAB,
    "ttt_steps": 2,
    "batch_tokens": 40,
    "dtype": "float32",
    "head_dtype": "float32",
}


@pytest.fixture
def save_head(tmp_path):
    """Writes a random head of the tiny target, with some fields changed, and names its folder."""

    def save(**changes) -> str:
        # EAGLE's rule for 7 layers.
        config = tiny_config(**{"feature_layers": (2, 3, 4), **changes})
        table = torch.randn(config.vocab_size, config.hidden_size)
        head = Eagle3DraftHead(config, embed_tokens=table)
        head.set_draft_vocabulary(torch.randperm(VOCAB)[:DRAFT_VOCAB])
        head.save_pretrained(tmp_path / "initial")
        return str(tmp_path / "initial")

    return save


def first_losses(folder: Path) -> list[float]:
    """Losses of step 0 of training-time test, each the mean of ten optimizer steps."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["step_losses"][0] for record in records if record["kind"] == "train"]


def read(path: str, target, **changes):
    return read_initial_head(target, TrainOptions(**{**OPTIONS, "initial_head": path, **changes}))


def test_weights_vocabulary_and_configuration_are_taken_over(save_head, tiny_target):
    path = save_head()
    options = TrainOptions(**OPTIONS, initial_head=path)
    head, lm_head = make_head(tiny_target, [], options, read_initial_head(tiny_target, options))
    saved = load_file(f"{path}/model.safetensors")
    state = head.state_dict()
    assert state.keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in state.items())
    assert head.config == tiny_config(feature_layers=None)
    assert all(parameter.requires_grad for parameter in head.parameters())
    model = AutoModelForCausalLM.from_pretrained(tiny_target)
    assert torch.equal(head.embed_tokens, model.get_input_embeddings().weight)
    assert torch.equal(lm_head, model.get_output_embeddings().weight)


def test_a_half_precision_head_is_trained_in_fp32(save_head, tiny_target, tmp_path):
    Eagle3DraftHead.from_pretrained(save_head()).save_pretrained(
        tmp_path / "half", dtype=torch.float16
    )
    head = read(str(tmp_path / "half"), tiny_target)
    assert {parameter.dtype for parameter in head.parameters()} == {torch.float32}


def test_no_initial_head(tiny_target):
    assert read_initial_head(tiny_target, TrainOptions(**OPTIONS)) is None


def test_a_run_goes_on_from_another_runs_head(tiny_target, tiny_data, tmp_path):
    def run(name: str, **changes):
        options = TrainOptions(**{**OPTIONS, "steps": 30, "learning_rate": 0.02, **changes})
        return train_draft(
            tiny_target, [tiny_data], tmp_path / "features", tmp_path / name, options
        )

    first = run("first")
    path = str(first.head_path)
    # The learning rate is too small for one step to change what fp32 can show.
    still = run("still", initial_head=path, steps=1, learning_rate=1e-30)
    assert still.validation == first.validation
    one, other = (load_file(r.head_path / "model.safetensors") for r in (first, still))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert json.loads((tmp_path / "still/run.json").read_text())["initial_head"] == path

    second = run("second", initial_head=path)
    untrained, *_ = first_losses(tmp_path / "first")
    losses = first_losses(tmp_path / "second")
    assert losses[0] < untrained
    assert losses[-1] < losses[0]
    assert second.steps == 30
    with pytest.raises(ValueError, match="initial_head must be"):
        run("second")


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"draft_vocab_size": 21}, "draft_vocab_size 21, as the options say, .* has 20"),
        ({}, {"intermediate_size": 32}, "intermediate_size 32, as the options say, .* has 24"),
        ({"vocab_size": VOCAB + 1}, {}, f"vocab_size {VOCAB}, to fit the target, .* has 49"),
        (
            {"feature_layers": (1, 3, 5)},
            {"feature_layers": (2, 3, 4)},
            r"feature_layers \(2, 3, 4\), as the options say, .* has \(1, 3, 5\)",
        ),
        ({"target_hidden_size": 12}, {}, "feature_hidden_size 16, to fit the target, .* has 12"),
        ({"norm_before_residual": True}, {}, "other kinds cannot be trained"),
    ],
)
def test_a_head_that_does_not_fit(save_head, tiny_target, changes, options, message):
    with pytest.raises(ValueError, match=message):
        read(save_head(**changes), tiny_target, **options)


def test_a_head_that_does_not_fit_leaves_no_run(save_head, tiny_target, tiny_data, tmp_path):
    options = TrainOptions(**{**OPTIONS, "draft_vocab_size": 21}, initial_head=save_head())
    with pytest.raises(ValueError, match="initial_head must have"):
        train_draft(tiny_target, [tiny_data], tmp_path / "features", tmp_path / "run", options)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "features").exists()


def test_a_folder_without_a_head(tiny_target, tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        read(str(tmp_path / "nothing"), tiny_target)
