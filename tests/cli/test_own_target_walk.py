"""Every command of "Your own target and head" in docs/policies.md, with a small target and little
data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from eaglerl.cli.app import app
from eaglerl.cost.cost_table import CostTable

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*Could not find the number of physical cores"),
]
TERMINAL = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env=TERMINAL)
    assert result.exit_code == 0, f"{arguments}: {result.stderr}"
    return result.stdout


def save_target(folder: Path, smollm2_path: Path) -> Path:
    """A random model of four layers with a chat template."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_path)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=2048,
        bos_token_id=1, eos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_cost(path: Path, draft_dtype: str = "float32") -> None:
    """A table as `calibrate` makes one; on a busy machine it rightly keeps none."""
    CostTable(
        machine="made up",
        draft_dtype=draft_dtype,
        total_tokens=(1, 16, 64),
        verify_base=(0.020, 0.030, 0.060),
        verify_slope=(0.0, 0.0, 0.0),
        top_ks=(1, 2, 4, 8),
        first_pass=(0.001, 0.001, 0.001, 0.001),
        later_pass=(0.001, 0.001, 0.001, 0.001),
    ).to_json(path)


def test_from_a_target_to_a_policy(
    smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = str(save_target(tmp_path / "target", smollm2_path))
    model = ["--model", target]
    layers = ["--feature-layers", "0,1,3"]
    both = [*model, "--draft", "head-run/head", "--draft-dtype", "float32"]
    few = ["--response-tokens", "6000", "-n", "24", "--slots", "32"]
    run("distill", "data.jsonl", *few, *layers, *model)
    small = ["--draft-vocab-size", "512", "--ttt-steps", "2", "--epochs", "1"]
    run("train-draft", "data.jsonl", "--output", "head-run", *small, *layers, *model)
    plain = run("generate", "Why?", "-n", "16", "--plain", *model)
    assert run("generate", "Why?", "-n", "16", *both) == plain
    assert run("generate", "Why?", "-n", "16", "--tree", "8/2/4", *both) == plain
    run("record", "traces", "data.jsonl", "--held-out", "--max-positions", "300", "-n", "16", *both)
    run("record", "traces", "questions/*.jsonl", "--split", "train", "-n", "16", *both)
    write_cost(Path("cost.json"))
    fit = ["--algorithm", "ppo", "--steps", "64"]
    run("train-policy", *fit, "--traces", "traces", "--cost", "cost.json", "-o", "ppo-run")
    policy = ["--policy", "ppo-run/policy"]
    run("demo", "-n", "16", *policy, *both)
    assert run("generate", "Why?", "-n", "16", *policy, *both) == plain
    modes = ["--mode", "tree:4/1/4", "--mode", "auto", "--mode", "policy:ppo-run/policy"]
    short = ["--per-file", "1", "--repeats", "1", "-n", "8", "--cost", "cost.json"]
    run("compare", "comparison", "questions/", *modes, *short, *both)
    answers = ["--answer-file", "answers.jsonl", "--max-new-token", "8", "--question-end", "1"]
    run("evaluate", "--bench-name", "everyday", *answers, "--total-token", "8", *both)
    assert len(Path("answers.jsonl").read_text().splitlines()) == 1
