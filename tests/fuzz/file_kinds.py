"""Every kind of file that eaglerl reads: an example made by its own writers, and its reader."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from eaglerl.actions import ActionSpace
from eaglerl.cli.export_head_command import _architectures
from eaglerl.cli.shared.prompt_files import read_prompt_files
from eaglerl.cost.cost_table import CostTable
from eaglerl.cost.online_cost import OnlineCost
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.head.feature_layers import other_reading
from eaglerl.eagle3.policy import TreeParams
from eaglerl.eagle3.target.make_target import load_target
from eaglerl.eagle3.target.target_files import load_transformers_model
from eaglerl.evaluation.questions.question_files import files_digest, read_questions
from eaglerl.evaluation.report.evidence import read_answers
from eaglerl.evaluation.results.records import load_comparison
from eaglerl.evaluation.statistics.summary import summarise
from eaglerl.gguf_convert.gguf_config import read_config
from eaglerl.gguf_convert.gguf_file import read_gguf
from eaglerl.headroom.chain_study import study_steps
from eaglerl.headroom.cost_files import read_cost
from eaglerl.headroom.step_log import read_steps
from eaglerl.json_file import JsonObject, read_json
from eaglerl.kernels import tuning
from eaglerl.kernels._plan import Tiles
from eaglerl.ops import PolicyWeights
from eaglerl.policies.policy_folder import find_policy
from eaglerl.policy_export.step_costs import StepCosts
from eaglerl.prepare import is_prepared, write_marker
from eaglerl.resps.bench import summarise_answers
from eaglerl.resps.policies.load_saved import load_resps_policy
from eaglerl.resps.presets import _check_settings
from eaglerl.runs.head_run import HeadRun
from eaglerl.traces.trace_set import TraceSet
from eaglerl.training.data import Row, read_rows
from eaglerl.training.distill import append_row, recover
from eaglerl.training.features import FeatureDataset, Shard, _write_index, read_index

from ..eagle3.heads import eagle_json, eagle_tensors, make_config, make_head, write_files
from ..eagle3.tiny import tiny_model
from ..evaluation.made_up import write_comparison, write_traces
from ..gguf_files import VOCAB_SIZE, write_gguf
from ..headroom.logs import COST as STEP_COST
from ..headroom.logs import always, drawn_lines, write_log
from ..resps.small_policies import DQN, PPO, make_policy
from ..resps.test_policy_files import sequences
from ..traces.planted import ACTIONS
from ..traces.test_oracle import COST
from ..traces.tiny import made_up_trace


@dataclass(frozen=True)
class FileKind:
    """A kind of file.

    Attributes:
        write: makes an example in an empty folder.
        read: reads it as eaglerl does, and does with it what it is read for.
        modules: of eaglerl, whose readers it goes through.
    """

    write: Callable[[Path], object]
    read: Callable[[Path], object]
    modules: tuple[str, ...]


def _read_policy(folder: Path) -> None:
    files = find_policy(folder)
    assert len(files.fingerprint) == 16
    load_resps_policy(folder).fused()


def _write_head(folder: Path) -> None:
    head = make_head(make_config())
    write_files(folder, eagle_json(head.config), eagle_tensors(head))


def _read_head(folder: Path) -> None:
    head = Eagle3DraftHead.from_pretrained(folder)
    # As the check of its tapped layers does.
    data = read_json(folder / "config.json", JsonObject, "draft head's config")
    other_reading(data, head.config.feature_layers, 8)
    # As `export-head` does before it writes over one.
    _architectures(folder / "config.json")


def _write_sharded_head(folder: Path) -> None:
    head = make_head(make_config())
    (folder / "config.json").write_text(json.dumps(eagle_json(head.config)))
    tensors = eagle_tensors(head)
    names = {key: f"model-{index % 2}.safetensors" for index, key in enumerate(tensors)}
    for name in set(names.values()):
        save_file({key: tensors[key] for key in tensors if names[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def _write_bin_head(folder: Path) -> None:
    head = make_head(make_config())
    (folder / "config.json").write_text(json.dumps(eagle_json(head.config)))
    torch.save(eagle_tensors(head), folder / "pytorch_model.bin")


def _write_target(folder: Path) -> None:
    tiny_model(eos_token_id=2, vocab_size=32, intermediate_size=16).save_pretrained(folder)


def _write_traces(folder: Path) -> None:
    folder.rmdir()
    write_traces(folder, [made_up_trace(6, seed=seed) for seed in range(2)])


def _read_traces(folder: Path) -> None:
    actions = [tree for tree in (TreeParams(1), TreeParams(3, 1, 2))]
    for trace in TraceSet(folder):
        trace.check_tree(actions[1])
        trace.accepted_lengths(actions)


def _write_comparison(folder: Path) -> None:
    folder.rmdir()
    modes = {"plain": ("plain", lambda _: 2.0), "tuned": ("tuned", lambda _: 1.0)}
    write_comparison(folder, modes, domains=("chat",), questions=2, repeats=1, answer="So.")


def _read_comparison(folder: Path) -> None:
    comparison = load_comparison(folder)
    read_answers(folder / "answers")
    if comparison.records:
        summarise(comparison, [comparison.records[0].mode])


def _write_lines(path: Path, *rows: object) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_questions(folder: Path) -> None:
    turns = {"turns": ["Who was Ada?", "And Grace?"], "category": "people"}
    _write_lines(folder / "chat.jsonl", {"question_id": 1} | turns, {"question_id": "b"} | turns)


def _read_questions(folder: Path) -> None:
    read_questions([folder / "chat.jsonl"])
    files_digest([folder / "chat.jsonl"])


def _write_rows(folder: Path) -> None:
    for number in range(3):
        append_row(folder / "rows.jsonl", [1, 2, number], [3, 4])


def _read_rows(folder: Path) -> None:
    list(read_prompt_files(None, [folder / "rows.jsonl"], held_out=True))
    read_rows([folder / "rows.jsonl"])
    recover(folder / "rows.jsonl")


def _feature_rows() -> list[Row]:
    return [Row((1, 2, number), (3, 4)) for number in range(3)]


def _write_features(folder: Path) -> None:
    rows = _feature_rows()
    length = sum(len(row.token_ids) for row in rows)
    tensors = {
        "token_ids": torch.tensor([i for row in rows for i in row.token_ids], dtype=torch.int32),
        "offsets": torch.tensor([0, 5, 10, 15]),
        "prompt_lengths": torch.tensor([3] * 3, dtype=torch.int32),
        "taps": torch.ones(length, 12, dtype=torch.float16),
        "final_hidden": torch.ones(length, 4, dtype=torch.float16),
    }
    save_file(tensors, folder / "shard.safetensors")
    shard = Shard("shard.safetensors", "train", length, tuple(row.digest for row in rows))
    _write_index(folder, {"target": {"model_type": "llama"}}, [shard])


def _read_features(folder: Path) -> None:
    dataset = FeatureDataset(folder, read_index(folder), _feature_rows())
    for index in range(len(dataset)):
        assert len(dataset[index].token_ids) == 5


def _write_run(folder: Path) -> None:
    run = HeadRun(folder)
    run.check_settings({"ttt_steps": 3, "rows": ["a", "b"]})
    run.checkpoints.save(4, {"head.fc": torch.ones(3)}, {"seconds": 2.5})
    for step in range(1, 4):
        values = {"rows": 8, "step_losses": [2.0, 1.5], "accuracy": [0.5, 0.25]}
        run.log(step, "train", values)
        run.log(step, "validation", values)


def _read_run(folder: Path) -> None:
    run = HeadRun(folder)
    run.check_settings({"ttt_steps": 3, "rows": []})
    run.checkpoints.newest()
    run.read_metrics()


def _write_checkpoints(policy_class: type) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        policy = make_policy(policy_class, checkpoint_dir=folder, checkpoint_freq=1000)
        sequences(policy, 0, 3)
        policy.save_checkpoint()
        policy.close()

    return write


def _read_checkpoints(policy_class: type) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        policy = make_policy(policy_class, checkpoint_dir=folder, checkpoint_freq=1000)
        try:
            policy.resume()
        finally:
            policy.close()

    return read


def _write_tiles(folder: Path) -> None:
    tiles = {"rows": 1, "columns": 4, "elements": 64, "num_warps": 4, "num_stages": 3}
    content = {"format": 1, "tiles": {"cpu, fused": tiles | {"max_registers": 168}}}
    (folder / "triton_tiles.json").write_text(json.dumps(content))


def _read_tiles(folder: Path) -> None:
    tuning._read.cache_clear()
    assert all(isinstance(t, Tiles) for t in tuning._read(folder / "triton_tiles.json").values())


def _write_model(folder: Path) -> None:
    (folder / "weights").write_bytes(b"123")
    write_marker(folder, "a package")


def _write_answers(folder: Path) -> None:
    choice = {"index": 0, "turns": ["So."], "idxs": [3], "new_tokens": [9], "wall_time": [0.5]}
    line = {"question_id": 1, "answer_id": "a", "model_id": "m", "choices": [choice], "tstamp": 1.0}
    _write_lines(folder / "answers.jsonl", line, line | {"question_id": "b"})


def _write_step_costs(folder: Path) -> None:
    content = {
        "format": "eaglerl-step-costs", "version": 1, "machine": "made up", "batch_sizes": [1, 8],
        "steps": [0, 3], "seconds": [[0.01, 0.012], [0.02, 0.03]],
    }  # fmt: skip
    (folder / "costs.json").write_text(json.dumps(content))


def _write_gguf(folder: Path) -> None:
    model = tiny_model(vocab_size=VOCAB_SIZE, eos_token_id=2, bos_token_id=1)
    write_gguf(folder / "model.gguf", model, "llama")


def _write_safetensors(folder: Path) -> None:
    tiny_model(hidden_size=64, intermediate_size=64, head_dim=16, eos_token_id=2).save_pretrained(
        folder
    )


def _read_safetensors(folder: Path) -> None:
    # Quantised while loading, so that every tensor is read.
    load_target(folder, weights="q8_0", feature_layers=[])


def _write_steps(folder: Path) -> None:
    write_log(folder / "steps.jsonl", drawn_lines(always(0.5), requests=2, steps=4, levels=2))


def _read_steps_of_log(folder: Path) -> None:
    steps = read_steps([folder / "steps.jsonl"])
    if len(steps.requests) > 1 and steps.levels:
        study_steps(steps, STEP_COST).to_dict()


def _write_curve(folder: Path) -> None:
    points = [{"rows": rows, "batch": 1, "context": 0, "seconds": 0.1} for rows in (1, 4)]
    draft = [{"batch": 1, "context": 0, "seconds": 0.01}]
    form = {"format": "eaglerl-cost-curve", "version": 1, "machine": "made up"}
    (folder / "curve.json").write_text(json.dumps(form | {"verify": points, "draft": draft}))


def _write_steps_per_second(folder: Path) -> None:
    table = {"sample_batch_tokens": [1, 8], "sample_steps_per_sec": [50.0, 20.0]}
    (folder / "sps.json").write_text(json.dumps(table | {"max_batch_tokens": 8}))


def _read_step_cost(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        cost = read_cost(folder / name)
        rows = np.arange(1, min(cost.most_rows(1), 64) + 1)
        assert (cost.verify(rows[-1:], 1, np.array(0)) > 0).all()

    return read


KINDS: dict[str, FileKind] = {
    "log of steps": FileKind(_write_steps, _read_steps_of_log, ("eaglerl.headroom.step_log",)),
    "cost curve": FileKind(
        _write_curve, _read_step_cost("curve.json"), ("eaglerl.headroom.cost_files",)
    ),
    "steps per second": FileKind(_write_steps_per_second, _read_step_cost("sps.json"), ()),
    "cost table": FileKind(
        lambda folder: COST.to_json(folder / "cost.json"),
        lambda folder: CostTable.from_json(folder / "cost.json").seconds(TreeParams(1), 10),
        ("eaglerl.cost.cost_table",),
    ),
    "learned costs": FileKind(
        lambda folder: OnlineCost((2, 4)).to_json(folder / "learned.json"),
        lambda folder: OnlineCost.from_json(folder / "learned.json").table(),
        ("eaglerl.cost.online_cost",),
    ),
    "step costs": FileKind(
        _write_step_costs,
        lambda folder: StepCosts.from_file(folder / "costs.json"),
        ("eaglerl.policy_export.step_costs",),
    ),
    "actions": FileKind(
        lambda folder: ACTIONS.to_json(folder / "actions.json"),
        lambda folder: ActionSpace.from_json(folder / "actions.json"),
        ("eaglerl.actions", "eaglerl.eagle3.tree.tree_row"),
    ),
    "PPO policy": FileKind(
        lambda folder: make_policy(PPO).save(folder),
        _read_policy,
        (
            "eaglerl.resps.policies.policy_file",
            "eaglerl.resps.policies.policy_settings",
            "eaglerl.sb3.policy_card",
            "eaglerl.envs.observations",
            "eaglerl.policies.policy_folder",
        ),
    ),
    "DQN policy": FileKind(lambda folder: make_policy(DQN).save(folder), _read_policy, ()),
    "weights of a policy": FileKind(
        lambda folder: make_policy(PPO).weights.save_pretrained(folder),
        PolicyWeights.from_pretrained,
        ("eaglerl.ops._policy_files",),
    ),
    "head": FileKind(
        _write_head,
        _read_head,
        (
            "eaglerl.eagle3.head.draft_config",
            "eaglerl.eagle3.head.weight_files",
            "eaglerl.eagle3.head.draft_checkpoint",
            "eaglerl.eagle3.head.feature_layer_check",
            "eaglerl.cli.export_head_command",
        ),
    ),
    "head in shards": FileKind(
        _write_sharded_head, Eagle3DraftHead.from_pretrained, ("eaglerl.tensor_file",)
    ),
    "head as .bin": FileKind(_write_bin_head, Eagle3DraftHead.from_pretrained, ()),
    "target": FileKind(
        _write_target,
        lambda folder: load_transformers_model(folder, torch.float32),
        (
            "eaglerl.eagle3.target.target_files",
            "eaglerl.eagle3.target.target_header",
            "eaglerl.eagle3.generation_config.generation_schema",
        ),
    ),
    "traces": FileKind(
        _write_traces, _read_traces, ("eaglerl.traces.trace_set", "eaglerl.traces.trace_index")
    ),
    "comparison": FileKind(
        _write_comparison,
        _read_comparison,
        (
            "eaglerl.evaluation.results.records",
            "eaglerl.evaluation.results.json_lines",
            "eaglerl.evaluation.report.evidence",
        ),
    ),
    "questions": FileKind(
        _write_questions, _read_questions, ("eaglerl.evaluation.questions.question_files",)
    ),
    "rows": FileKind(
        _write_rows,
        _read_rows,
        ("eaglerl.training.data", "eaglerl.training.distill", "eaglerl.cli.shared.prompt_files"),
    ),
    "features": FileKind(_write_features, _read_features, ("eaglerl.training.features",)),
    "run of a head": FileKind(_write_run, _read_run, ("eaglerl.runs.head_run",)),
    "checkpoints of PPO": FileKind(
        _write_checkpoints(PPO),
        _read_checkpoints(PPO),
        (
            "eaglerl.runs.checkpoints",
            "eaglerl.runs.sb3_state",
            "eaglerl.resps.policies.policy_saving",
        ),
    ),
    "checkpoints of DQN": FileKind(_write_checkpoints(DQN), _read_checkpoints(DQN), ()),
    "settings of a preset": FileKind(
        lambda folder: _check_settings(folder, {"steps": 3, "seed": 0}),
        lambda folder: _check_settings(folder, {"steps": 3, "seed": 0}),
        ("eaglerl.resps.presets",),
    ),
    "tiles": FileKind(_write_tiles, _read_tiles, ("eaglerl.kernels.tuning",)),
    "prepared model": FileKind(_write_model, is_prepared, ("eaglerl.prepared_folder",)),
    "safetensors target": FileKind(
        _write_safetensors, _read_safetensors, ("eaglerl.eagle3.target.safetensors_weights",)
    ),
    "answers": FileKind(
        _write_answers,
        lambda folder: summarise_answers(folder / "answers.jsonl"),
        ("eaglerl.resps.bench",),
    ),
    "GGUF file": FileKind(
        _write_gguf,
        lambda folder: read_config(read_gguf(folder / "model.gguf")),
        ("eaglerl.gguf_convert.gguf_file",),
    ),
}
