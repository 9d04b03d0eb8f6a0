"""A tiny target with a head, questions for it, and what modes need besides."""

import json
from types import SimpleNamespace

import pytest

from eaglerl.actions import ActionSpace
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3 import SpeculativeDecoder
from eaglerl.resps.policies import OptimizedSB3DiscretePPOOnlineTreePolicy
from eaglerl.traces.recording import Prompt, RecordOptions, record

ROWS = (1, 2, 4, 8, 16, 32, 64)
COST = CostTable(
    machine="made up",
    draft_dtype="float32",
    total_tokens=ROWS,
    verify_base=tuple(0.01 + 0.0005 * rows for rows in ROWS),
    verify_slope=(1e-6,) * len(ROWS),
    top_ks=(1, 2, 4, 8),
    first_pass=(1e-3,) * 4,
    later_pass=(1e-3,) * 4,
)


@pytest.fixture(scope="session")
def tiny(
    tiny_folders: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """A small random target with a head, and two files of questions."""
    root = tmp_path_factory.mktemp("questions")
    (root / "questions").mkdir()
    chat = [
        {"question_id": 80 + i, "category": "talk", "turns": [f"Tell me of {i}.", "And then?"]}
        for i in range(6)
    ]
    sums = [{"question_id": f"s{i}", "turns": [f"What is {i} and {i}?"]} for i in range(6)]
    for name, rows in (("chat", chat), ("sums", sums)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (root / "questions" / f"{name}.jsonl").write_text(text)
    return SimpleNamespace(
        root=root,
        target=tiny_folders.target,
        head=tiny_folders.head,
        questions=root / "questions",
        files=sorted((root / "questions").iterdir()),
        arguments=tiny_folders.arguments,
    )


@pytest.fixture(scope="session")
def decoder(tiny: SimpleNamespace) -> SpeculativeDecoder:
    return SpeculativeDecoder.from_pretrained(tiny.target, tiny.head, draft_dtype="float32")


@pytest.fixture(scope="session")
def policies(
    tiny: SimpleNamespace, decoder: SpeculativeDecoder, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """The folder of an untrained policy for the tiny head, its traces, and a cost table."""
    root = tmp_path_factory.mktemp("policies")
    OptimizedSB3DiscretePPOOnlineTreePolicy(
        hidden_size=32,
        actions=ActionSpace.cpu(),
        action_cache_steps=4,
        max_entropy_inference=False,
        head=decoder.draft_head,
    ).save(root / "ppo")
    prompts = [Prompt((index + 5, index + 6, index + 7), "self-written") for index in range(3)]
    options = RecordOptions(top_ks=(2, 4), max_depth=4, max_new_tokens=12)
    traces = record(decoder, prompts, root / "traces", options=options)
    COST.to_json(root / "cost.json")
    return SimpleNamespace(
        ppo=root / "ppo",
        traces=traces,
        cost=COST,
        cost_file=root / "cost.json",
    )
