"""Folders of comparisons, traces and policies that are made up, as real ones are written."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from eaglerl.actions import ActionSpace
from eaglerl.eagle3.policy import NO_DRAFT, TreeParams
from eaglerl.evaluation.results.json_lines import LineWriter
from eaglerl.evaluation.results.records import Cycles, Manifest, Mode, Record, Turn
from eaglerl.ops import PolicyWeights
from eaglerl.resps.policies.policy_file import write_policy_folder
from eaglerl.resps.policies.policy_settings import PolicySettings
from eaglerl.traces.trace_index import FORMAT, VERSION, write_index
from eaglerl.traces.trace_set import Trace, write_shard

ACTIONS = ActionSpace([NO_DRAFT, TreeParams(2, 0, 1), TreeParams(4, 1, 2), TreeParams(6, 2, 2)])
FEATURES = 6

#: How many times as long a mode takes for a question of a number as the tuned constant does.
Slowness = Callable[[int], float]


def made_up_record(
    mode: str, domain: str, number: int, repeat: int, slowness: float, last_token: int = 7
) -> Record:
    """29 tokens: the prefill's, and 14 cycles of two or one."""
    tokens = (3, 2, 1, 2) * 3 + (2, 2)
    count = len(tokens)
    # Later repeats are slower for all modes alike: pairs do not see it.
    seconds = 0.01 * (1 + 0.1 * number) * (1 + repeat) * slowness
    decides = mode not in ("plain", "tuned")
    cycles = Cycles(
        tokens=tokens,
        total_tokens=tuple(4 if index % 3 else 6 for index in range(count)),
        depth=tuple(1 if index % 3 else 2 for index in range(count)),
        top_k=(2,) * count,
        rows=tuple(7 if index % 5 == 4 else 4 if index % 3 else 6 for index in range(count)),
        lookup_tokens=tuple(3 if index % 5 == 4 else 0 for index in range(count)),
        lookup_accepted=tuple(1 if index % 5 == 4 else 0 for index in range(count)),
        draft_seconds=(0.2 * seconds,) * count,
        verify_seconds=(0.7 * seconds,) * count,
        policy_seconds=(0.05 * seconds * decides,) * count,
    )
    ids = (*range(28), last_token)
    turn = Turn(5, ids, "length", 0.1, seconds * count, cycles)
    return Record(f"{domain}/{number}", domain, domain, repeat, mode, 0, 0, 0.0, 0.3, (turn,))


def write_comparison(
    folder: Path,
    modes: Mapping[str, tuple[str, Slowness]],
    *,
    domains: tuple[str, ...],
    questions: int = 8,
    repeats: int = 2,
    broken: str = "",
    answer: str = "",
) -> None:
    """Write a comparison; the mode `broken` gives another last token, `answer` is every text."""
    folder.mkdir()
    names = [(domain, number) for domain in domains for number in range(questions)]
    trees = {"tuned": {"test": (4, 1, 2)}}
    Manifest(
        configuration={
            "max_new_tokens": 40, "temperature": 0.0, "repeats": repeats, "split": "test",
        },
        questions=tuple({"id": f"{d}/{n}", "domain": d, "split": "test"} for d, n in names),
        target_id="a" * 16,
        head_id="b" * 16,
        machine="a made-up machine",
        versions={"eaglerl": "0"},
        modes={
            label: Mode(spec, f"what {label} is", None, trees.get(label))
            for label, (spec, _) in modes.items()
        },
        runs=({"started": "2026-01-01T00:00:00+00:00", "load": [0.1] * 3, "modes": list(modes)},),
    ).to_json(folder)  # fmt: skip
    with LineWriter(folder / "records.jsonl") as writer:
        for label, (_, slowness) in modes.items():
            for domain, number in names:
                for repeat in range(repeats):
                    last = 8 if label == broken and number == 0 else 7
                    record = made_up_record(label, domain, number, repeat, slowness(number), last)
                    writer.append(record.to_dict())
    for label in modes if answer else ():
        (folder / "answers" / label).mkdir(parents=True)
        lines = [
            {"question_id": n, "model_id": label, "choices": [{"index": 0, "turns": [answer]}]}
            for n in range(questions)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "answers" / label / f"{domains[0]}.jsonl").write_text(text)


def write_traces(folder: Path, traces: list[Trace]) -> None:
    """Write traces as the recorder does."""
    folder.mkdir()
    shards = []
    for index, trace in enumerate(traces):
        name = f"{index}.safetensors"
        write_shard(folder / name, trace)
        shards.append(
            {
                "file": name,
                "prompt_id": trace.prompt_id,
                "domain": trace.domain,
                "positions": len(trace),
            }
        )
    content = {
        "format": FORMAT,
        "version": VERSION,
        "target_id": "a" * 16,
        "head_id": "b" * 16,
        "draft_dtype": "float32",
        "hidden_size": traces[0].features.shape[1],
        "top_ks": list(traces[0].top_ks),
        "max_depth": traces[0].max_depth,
        "max_new_tokens": len(traces[0]),
        "lookup_tokens": traces[0].lookup_tokens,
        "shards": shards,
    }
    write_index(folder, content)


def write_policy(folder: Path) -> None:
    """Write a published policy with random weights."""
    settings = PolicySettings(
        hidden_size=FEATURES, actions=ACTIONS, max_entropy_inference=False, action_cache_steps=5
    )
    generator = torch.Generator().manual_seed(0)
    weights = PolicyWeights(
        hidden_weights=(torch.randn(4, FEATURES, generator=generator),),
        hidden_biases=(torch.zeros(4),),
        output_weight=torch.randn(len(ACTIONS), 4, generator=generator),
        output_bias=torch.zeros(len(ACTIONS)),
        actions=ACTIONS.tensor,
    )
    write_policy_folder(folder, weights, settings, algorithm="ppo", model={})
