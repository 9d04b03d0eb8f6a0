"""Exported heads in the engines they are for, and the counting of what these accept."""

import json
import os
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from eaglerl.eagle3.chain_acceptance import ChainAcceptance, chain_acceptance
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.head.export_head import export_head
from eaglerl.eagle3.target.make_target import load_target
from eaglerl.prepare import default_draft_path, prepare_model

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))

from compare_heads import TOLERANCE, ask_vllm, with_equal_texts, worst_difference  # noqa: E402
from compare_peers import read_prompts  # noqa: E402
from llama_cpp import read_cycles  # noqa: E402

VLLM = os.environ.get("EAGLERL_VLLM_PYTHON")


@pytest.mark.skipif(VLLM is None, reason="needs EAGLERL_VLLM_PYTHON, a Python with vLLM 0.32")
@pytest.mark.parametrize("chain", [3, 5])
def test_vllm_accepts_what_eaglerl_accepts(tmp_path: Path, chain: int) -> None:
    """The packaged head, with its fc_norm: 20 questions of 64 tokens, greedy, float32."""
    assert VLLM is not None
    model = prepare_model(cache_dir=tmp_path / "float32", float32=True)
    prompts = list(read_prompts([ROOT / "questions"], "all", 4, model, 64).values())
    target = load_target(model, precision="float32")
    head = Eagle3DraftHead.from_pretrained(default_draft_path())
    export_head(head, tmp_path / "head", "vllm", num_target_layers=target.num_layers)
    task = {
        "target": str(model),
        "head": str(tmp_path / "head"),
        "chain": chain,
        "tokens": 64,
        "prompts": prompts,
    }
    theirs = ask_vllm(Path(VLLM), task)
    ours = chain_acceptance(target, head, prompts, chain=chain, new_tokens=64)
    assert ours.cycles > 500
    assert worst_difference(ours, theirs) <= TOLERANCE
    assert [text[:8] for text in ours.texts] == [text[:8] for text in theirs.texts]


def test_cycles_are_counted_up_to_a_number_of_tokens() -> None:
    """The first token comes before the cycles; each adds its accepted tokens and one more."""
    sizes = [[2, 0, 1, 3], [0, 0, 0, 0]]
    texts = [list(range(10)), list(range(5))]
    counted = ChainAcceptance.of(sizes, texts, chain=3, new_tokens=5)
    # 1 + 3 + 1 tokens are there after two cycles of the first prompt; the second needs four.
    assert counted.cycles == 6
    assert counted.accepted == (1, 1, 0)
    assert counted.rates == pytest.approx((1 / 6, 1 / 6, 0))
    assert counted.mean_length == pytest.approx(8 / 6)
    assert counted.texts == ((0, 1, 2, 3, 4), (0, 1, 2, 3, 4))


def test_prompts_with_other_texts_are_left_out() -> None:
    def counted(second: int, accepted: list[int]) -> ChainAcceptance:
        return ChainAcceptance.of(
            [[1, 0, 0], accepted], [(1, 2, 3, 4), (1, second, 3, 4)], chain=2, new_tokens=4
        )

    one, other = with_equal_texts(counted(5, [0, 0, 0]), counted(6, [2]))
    assert one == other
    assert (one.cycles, one.accepted, len(one.texts)) == (2, (1, 0), 1)
    one, other = with_equal_texts(counted(5, [0, 0, 0]), counted(5, [2]))
    assert (one.cycles, other.cycles) == (5, 3)
    # Lengths of 1 + 1 / 5 and 1 + 3 / 3 tokens per cycle.
    assert worst_difference(one, other) == pytest.approx(4 / 5)


def test_cycles_of_a_stream() -> None:
    """As llama-server streams them: two cycles that accept 1 and 0, and the end."""
    events = [
        {"tokens": [5], "timings": {"predicted_n": 1}},
        {"tokens": [6], "timings": {"draft_n": 3, "draft_n_accepted": 1}},
        {"tokens": [7], "timings": {"draft_n": 3, "draft_n_accepted": 1}},
        {"tokens": [8], "timings": {"draft_n": 6, "draft_n_accepted": 1}},
        {"tokens": [], "timings": {"draft_n": 6, "draft_n_accepted": 1}},
    ]
    stream = "\n\n".join(f"data: {json.dumps(event)}" for event in events) + "\n\ndata: [DONE]\n"
    assert read_cycles(stream) == ([5, 6, 7, 8], [1, 0])


def test_chains_are_counted_as_they_are_decoded() -> None:
    """A later position is accepted in no more cycles than an earlier one."""
    model = prepare_model()
    ids = AutoTokenizer.from_pretrained(model)("One, two, three, four, five,").input_ids
    target = load_target(model)
    head = Eagle3DraftHead.from_pretrained(default_draft_path())
    counted = chain_acceptance(target, head, [ids], chain=3, new_tokens=16)
    assert counted.cycles < 15
    assert list(counted.accepted) == sorted(counted.accepted, reverse=True)
    assert len(counted.texts[0]) == 16
    # All cycles together emit the tokens after the first one, and at most a chain more.
    assert 15 <= counted.cycles + sum(counted.accepted) <= 15 + 3
