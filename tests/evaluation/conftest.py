"""A tiny target with a head, questions for it, and what modes need besides."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from eaglerl.eagle3 import Eagle3Config, Eagle3DraftHead, SpeculativeDecoder
from eaglerl.rl.acceptance_file import save_acceptance
from eaglerl.rl.actions import ActionSpace
from eaglerl.rl.cost import CostTable
from eaglerl.rl.identity import head_id, target_id
from eaglerl.rl.published import OptimizedSB3DiscretePPOOnlineTreePolicy
from eaglerl.rl.record import Prompt, RecordOptions, record

from ..rl.test_acceptance import random_model

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
def tiny(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A small random target with SmolLM2's tokenizer, a head, and two files of questions."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(smollm2_path)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
    }
    # No end-of-sequence token: the length of what is generated is known in advance.
    config = LlamaConfig(**shape, num_hidden_layers=8, eos_token_id=None, bos_token_id=None)
    LlamaForCausalLM(config).save_pretrained(root / "target")
    tokenizer.save_pretrained(root / "target")
    head = Eagle3DraftHead(Eagle3Config(**shape, draft_vocab_size=512))
    head.set_draft_vocabulary(torch.arange(512))
    head.save_pretrained(root / "head")
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
        target=root / "target",
        head=root / "head",
        questions=root / "questions",
        files=sorted((root / "questions").iterdir()),
        arguments=["--model", str(root / "target"), "--draft", str(root / "head")],
    )


@pytest.fixture(scope="session")
def decoder(tiny: SimpleNamespace) -> SpeculativeDecoder:
    return SpeculativeDecoder.from_pretrained(tiny.target, tiny.head, draft_dtype="float32")


@pytest.fixture(scope="session")
def policies(
    tiny: SimpleNamespace, decoder: SpeculativeDecoder, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """Folders of untrained policies for the tiny head, its traces, and a cost table."""
    root = tmp_path_factory.mktemp("policies")
    ids = {"target_id": target_id(decoder.target), "head_id": head_id(decoder.head)}
    (root / "acceptance").mkdir()
    save_acceptance(random_model(), root / "acceptance" / "model.safetensors", **ids)
    OptimizedSB3DiscretePPOOnlineTreePolicy(
        hidden_size=32,
        actions=ActionSpace.cpu(),
        action_cache_steps=4,
        max_entropy_inference=False,
        head=decoder.head,
    ).save(root / "ppo")
    prompts = [Prompt((index + 5, index + 6, index + 7), "self-written") for index in range(3)]
    options = RecordOptions(top_ks=(2, 4), max_depth=4, max_new_tokens=12)
    traces = record(decoder, prompts, root / "traces", options=options)
    COST.to_json(root / "cost.json")
    return SimpleNamespace(
        acceptance=root / "acceptance",
        ppo=root / "ppo",
        traces=traces,
        cost=COST,
        cost_file=root / "cost.json",
    )
