"""Whole runs on a tiny target: result, resume, interruption."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.training.train_draft import train_draft
from eaglerl.training.train_options import TrainOptions

from .tiny import DRAFT_VOCAB

OPTIONS = {
    "draft_vocab_size": DRAFT_VOCAB,
    "ttt_steps": 3,
    "batch_tokens": 40,
    "steps": 12,
    "dtype": "float32",
    "head_dtype": "float32",
    "validate_every": 5,
    "deep_fraction": 0.7,
    # Shorter than any step: every step is saved.
    "checkpoint_minutes": 1e-9,
}


class KilledError(Exception):
    """Stands for the end of the process: nothing after it is executed."""


@pytest.fixture
def train(tiny_target, tiny_data, tmp_path):
    def run(name: str, progress=None, data: Path = tiny_data, **changes):
        options = TrainOptions(**{**OPTIONS, **changes})
        folder = tmp_path / name
        return train_draft(
            tiny_target, [data], tmp_path / "features", folder, options, progress=progress
        )

    return run


def at_step(number: int, action):
    """A progress callback that acts at the end of a step."""

    def progress(stage: str, fraction: float) -> None:
        if stage.startswith(f"step {number} of"):
            action()

    return progress


def kill() -> None:
    raise KilledError


def read_metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("drawn_curves")
def test_a_run_leaves_a_head_and_its_curves(train, tiny_target, tmp_path):
    result = train("run", steps=40, learning_rate=0.02)
    assert result.steps == 40
    records = read_metrics(tmp_path / "run")
    losses = [record["step_losses"][0] for record in records if record["kind"] == "train"]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    validation = [record for record in records if record["kind"] == "validation"]
    assert [record["step"] for record in validation] == [5, 10, 15, 20, 25, 30, 35, 40, 40]
    assert validation[-1]["accuracy"] == result.validation.accuracy
    accepted, accuracy = result.validation.accepted, result.validation.accuracy
    assert accepted[0] == accuracy[0]
    assert all(one <= other for one, other in zip(accepted, accuracy, strict=True))
    assert (tmp_path / "run/learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "run/tensorboard").iterdir())
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 2

    table = AutoModelForCausalLM.from_pretrained(tiny_target).get_input_embeddings().weight
    head = Eagle3DraftHead.from_pretrained(result.head_path, embed_tokens=table)
    # EAGLE's default layers are not named: engines understand the same ids differently.
    assert head.config.feature_layers is None
    assert 2 in head.draft_to_target
    checkpoint = load_file(max((tmp_path / "run/checkpoints").iterdir()))
    for name, value in head.state_dict().items():
        assert torch.equal(value, checkpoint[f"head.{name}"])


@pytest.mark.parametrize("step", [1, 7])
def test_a_killed_run_goes_on_bit_for_bit(train, tmp_path, step):
    unbroken = train("unbroken")
    with pytest.raises(KilledError):
        train("broken", at_step(step, kill))
    broken = train("broken")
    one, other = (load_file(r.head_path / "model.safetensors") for r in (unbroken, broken))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    assert unbroken.validation == broken.validation
    for name in ("unbroken", "broken"):
        steps = [r["step"] for r in read_metrics(tmp_path / name) if r["kind"] == "validation"]
        assert steps == [5, 10, 12, 12]


def test_rows_added_meanwhile_do_not_change_a_run(train, tiny_data, tmp_path):
    unbroken = train("unbroken")
    with pytest.raises(KilledError):
        train("broken", at_step(6, kill))
    with tiny_data.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"p": [5, 6, 7], "r": [8] * 30}) + "\n")
    broken = train("broken")
    one, other = (load_file(r.head_path / "model.safetensors") for r in (unbroken, broken))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_ctrl_c_saves_and_leaves(train, tmp_path):
    interrupt = at_step(4, lambda: os.kill(os.getpid(), signal.SIGINT))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train("run", interrupt, checkpoint_minutes=1e9)
    assert signal.getsignal(signal.SIGINT) is handler
    assert [file.name for file in (tmp_path / "run/checkpoints").iterdir()] == [
        "step-00000004.safetensors"
    ]
    assert train("run", checkpoint_minutes=1e9).steps == 12


def test_a_half_written_checkpoint_and_metric_are_passed_over(train, tmp_path):
    with pytest.raises(KilledError):
        train("run", at_step(6, kill))
    (tmp_path / "run/checkpoints/.step-00000099.safetensors.x.tmp").write_bytes(b"half")
    with (tmp_path / "run/metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 6, "ki')
    assert train("run").steps == 12


def test_a_truncated_checkpoint_resumes_from_the_one_before(train, tmp_path):
    unbroken = train("unbroken")
    with pytest.raises(KilledError):
        train("run", at_step(7, kill))
    newest = max((tmp_path / "run/checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=f"skipped a broken checkpoint: .*{newest.name}"):
        result = train("run")
    one, other = (load_file(r.head_path / "model.safetensors") for r in (unbroken, result))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert unbroken.validation == result.validation


def test_a_run_is_not_resumed_with_other_options(train, tmp_path):
    with pytest.raises(KilledError):
        train("run", at_step(2, kill))
    with pytest.raises(ValueError, match=r"ttt_steps must be 3.*got 2"):
        train("run", ttt_steps=2)
    # These do not change what is trained.
    assert train("run", validate_every=3, head_dtype="float16").steps == 12


def test_a_run_is_not_resumed_without_its_rows(train, tiny_data, tmp_path):
    with pytest.raises(KilledError):
        train("run", at_step(2, kill))
    lines = tiny_data.read_text().splitlines(keepends=True)
    tiny_data.write_text("".join(lines[1:]))
    with pytest.raises(ValueError, match="must still hold the rows"):
        train("run")


def test_a_time_budget_ends_a_run(train):
    result = train("run", steps=100_000, max_minutes=0.02)
    assert 0 < result.steps < 100_000


def test_epochs_become_steps(train):
    one = train("one", steps=None, epochs=1).steps
    two = train("two", steps=None, epochs=2).steps
    assert one > 5
    assert abs(two - 2 * one) <= 1


def test_data_without_held_out_rows_is_an_error(train, tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text('{"p": [1, 2], "r": [3, 4, 5]}\n')
    with pytest.raises(ValueError, match=r"held-out ones"):
        train("run", data=path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ttt_steps", 0),
        ("epochs", 0.0),
        ("steps", 0),
        ("max_minutes", -1.0),
        ("warmup", 0.6),
        ("final_learning_rate", 1.5),
        ("deep_fraction", 0.0),
        ("dtype", "int8"),
        ("head_dtype", "auto"),
    ],
)
def test_options_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        TrainOptions(**{name: value})
