"""Everything that writes a folder or appends to a file refuses while another process does."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eaglerl.cli.shared.machine_cost import kept_cost_path, measure_cost
from eaglerl.eagle3 import SpeculativeDecoder
from eaglerl.eagle3.policy import TreeParams
from eaglerl.evaluation.modes.mode_names import parse_modes
from eaglerl.evaluation.modes.runners import Decoding
from eaglerl.evaluation.report import Evidence, write_report
from eaglerl.evaluation.running.comparison import compare
from eaglerl.evaluation.running.comparison_options import CompareOptions
from eaglerl.files import AlreadyLockedError
from eaglerl.resps.bench import EvaluationOptions, evaluate
from eaglerl.resps.policies import OptimizedSB3DiscretePPOOnlineTreePolicy, load_resps_policy
from eaglerl.resps.presets import preset_policies, train_preset
from eaglerl.resps.train_reference import train_reference
from eaglerl.sb3.train_policy import TrainPolicyOptions, train_policy, train_policy_live
from eaglerl.traces.recording import Prompt, RecordOptions, record
from eaglerl.traces.trace_set import TraceSet
from eaglerl.training.distill import distill
from eaglerl.training.features import extract_features
from eaglerl.training.train_draft import train_draft
from eaglerl.training.train_options import TrainOptions

from ...lock_holder import lock_holder
from ...resps.test_presets import inputs
from ...traces.planted import ACTIONS, COST, planted_traces
from ..made_up import write_comparison

PROMPTS = [Prompt((index, index + 1, index + 2), "made up") for index in range(4)]
DECODING = Decoding(4, 0.0, 1.0)


def data(folder: Path) -> list[Path]:
    """Rows as `distill` writes them, beside what is written."""
    path = folder / "data.jsonl"
    rows = [{"p": [1, 2, index], "r": [3, 4, 5, 6]} for index in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [path]


def learning(folder: Path) -> None:
    """A policy that saves its second checkpoint into a folder that another took over."""
    policy = OptimizedSB3DiscretePPOOnlineTreePolicy(
        hidden_size=4, actions=ACTIONS, checkpoint_dir=folder
    )
    policy.save_checkpoint()


def reported(folder: Path) -> None:
    modes = {"plain": ("plain", lambda _: 2.0), "tree": ("tree:4/1/2", lambda _: 1.0)}
    write_comparison(folder / "c", modes, domains=("a",))
    write_report([Evidence.read(folder / "c")], folder / "out")


def evaluated(run: SimpleNamespace) -> None:
    evaluate(
        run.decoder, TreeParams(2, 0, 1),
        EvaluationOptions(run.tiny.files[0], run.folder / "out", DECODING),
        model_id="it",
    )  # fmt: skip


def learned_while_evaluated(run: SimpleNamespace) -> None:
    policy = load_resps_policy(
        run.policies.ppo, head=run.decoder.draft_head, checkpoint_dir=run.folder / "out"
    )
    policy.training_mode = True
    evaluate(
        run.decoder, policy,
        EvaluationOptions(run.tiny.files[0], run.folder / "answers.jsonl", DECODING),
        model_id="it",
    )  # fmt: skip


#: What writes ``run.folder / "out"``, with which lock.
WRITERS: dict[str, tuple[str, Callable[[SimpleNamespace], Any]]] = {
    "record": ("exclusive_folder", lambda run: record(
        run.decoder, PROMPTS, run.folder / "out", options=RecordOptions(max_new_tokens=4))),
    "distill": ("exclusive_file", lambda run: distill(
        run.tiny.target, run.folder / "out", response_tokens=8, slots=2)),
    "features": ("exclusive_folder", lambda run: extract_features(
        run.tiny.target, [], run.folder / "out")),
    "train-draft": ("exclusive_folder", lambda run: train_draft(
        run.tiny.target, data(run.folder), run.folder / "features", run.folder / "out",
        TrainOptions(draft_vocab_size=64, epochs=0.01))),
    "a head": ("exclusive_folder", lambda run: run.decoder.draft_head.save_pretrained(
        run.folder / "out")),
    "ppo": ("exclusive_folder", lambda run: train_policy(
        planted_traces(2), ACTIONS, COST, run.folder / "out", TrainPolicyOptions("ppo", 64))),
    "dqn": ("exclusive_folder", lambda run: train_policy(
        planted_traces(2), ACTIONS, COST, run.folder / "out", TrainPolicyOptions("dqn", 64))),
    "live": ("exclusive_folder", lambda run: train_policy_live(
        run.decoder, PROMPTS, ACTIONS, run.folder / "out", TrainPolicyOptions("ppo", 64))),
    "as published": ("exclusive_folder", lambda run: train_reference(
        "ppo", planted_traces(2), ACTIONS, COST, run.folder / "out", total_steps=8)),
    "preset": ("exclusive_folder", lambda run: train_preset(
        preset_policies("ppo-modes", context=False), inputs(), run.folder / "out" / "..")),
    "a policy": ("exclusive_folder", lambda run: load_resps_policy(run.policies.ppo).save(
        run.folder / "out")),
    "weights": ("exclusive_folder", lambda run: load_resps_policy(
        run.policies.ppo).weights.save_pretrained(run.folder / "out")),
    "checkpoints": ("exclusive_file", lambda run: learning(run.folder / "out")),
    "compare": ("exclusive_folder", lambda run: compare(
        run.decoder, run.tiny.target, run.tiny.files, parse_modes(["plain"]), run.folder / "out",
        CompareOptions(repeats=1, per_file=1, max_new_tokens=4))),
    "evaluate": ("exclusive_file", evaluated),
    "evaluate, learning": ("exclusive_file", learned_while_evaluated),
    "report": ("exclusive_file", lambda run: reported(run.folder)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_a_second_writer_changes_nothing(
    name: str,
    tiny: SimpleNamespace,
    decoder: SpeculativeDecoder,
    policies: SimpleNamespace,
    tmp_path: Path,
) -> None:
    lock, write = WRITERS[name]
    out = tmp_path / "out"
    locked = tmp_path / "policies" if name == "preset" else out
    if lock == "exclusive_folder":
        locked.mkdir()
        (locked / "kept").write_text("kept")
    run = SimpleNamespace(tiny=tiny, decoder=decoder, policies=policies, folder=tmp_path)
    with lock_holder(lock, locked) as first:
        with pytest.raises(AlreadyLockedError, match=rf"{locked.name}.*pid {first.pid}\)"):
            write(run)
        left = {".lock", "kept"} if lock == "exclusive_folder" else set()
        if left:
            assert {path.name for path in locked.iterdir()} == left
        else:
            assert not locked.exists()


def test_a_second_calibration_is_refused(
    decoder: SpeculativeDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EAGLERL_CACHE", str(tmp_path))
    kept = kept_cost_path(decoder)
    with (
        lock_holder("exclusive_file", kept) as first,
        pytest.raises(AlreadyLockedError, match=rf"pid {first.pid}\)"),
    ):
        measure_cost(decoder, kept)
    assert not kept.exists()


@pytest.mark.slow
@pytest.mark.parametrize("work", ["record", "distill"])
def test_of_two_commands_one_does_it_all(work: str, tiny: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", "from eaglerl.cli import main; main()", work, str(out)]
    if work == "record":
        command += [*map(str, tiny.files), "-n", "16", *tiny.arguments]
    else:
        command += ["--response-tokens", "200", "-n", "16", "--slots", "4", "--model",
                    str(tiny.target)]  # fmt: skip
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    ends = [(process.communicate()[1], process.returncode) for process in both]
    assert sorted(code for _, code in ends) == [0, 1], ends
    refused = next(said for said, code in ends if code)
    winner = next(process for process in both if process.returncode == 0)
    assert "is being written by another process" in refused
    assert f"pid {winner.pid})" in refused
    if work == "record":
        assert len(TraceSet(out)) == 12
    else:
        rows = out.read_text().splitlines()
        assert len(set(rows)) == len(rows)
        assert torch.tensor([len(json.loads(row)["r"]) for row in rows]).sum() >= 200
