"""Recorded lengths against live decoding with the embedded model and its shipped head."""

import random
from pathlib import Path

import pytest

from eaglerl.eagle3 import SpeculativeDecoder, TreeParams
from eaglerl.prepare import DEFAULT_MODEL, default_draft_path
from eaglerl.traces.recording import Prompt, RecordOptions, record

from .test_record import live_disagreements

QUESTIONS = (
    "Why is the sky blue?",
    "Write a Python function that reverses a list.",
    "A train travels 60 km in 45 minutes. What is its speed?",
    "Name three rivers in Europe.",
    "Summarise the plot of Romeo and Juliet.",
)


def actions(count: int) -> list[TreeParams]:
    draw = random.Random(0)
    trees = []
    for _ in range(count):
        width, depth = draw.choice((1, 2, 4, 8)), draw.randrange(8)
        pool = width + depth * width**2
        trees.append(TreeParams(draw.randint(1, min(pool, 30) + 1), depth, width))
    return trees


def disagreements(path: Path, folder: Path, dtype: str, *, row_by_row: bool) -> tuple[int, int]:
    decoder = SpeculativeDecoder.from_pretrained(
        path, default_draft_path(DEFAULT_MODEL), draft_dtype=dtype
    )
    prompts = []
    for question in QUESTIONS:
        ids = decoder.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        prompts.append(Prompt(tuple(ids), "questions"))
    traces = record(decoder, prompts, folder, options=RecordOptions(max_new_tokens=32, slots=5))
    trees = actions(200)
    counts = [live_disagreements(decoder, t, trees, row_by_row=row_by_row) for t in traces]
    return sum(wrong for wrong, _ in counts), sum(cycles for _, cycles in counts)


@pytest.mark.slow
def test_in_float32_every_cycle_is_the_traces(smollm2_path: Path, tmp_path: Path) -> None:
    wrong, cycles = disagreements(smollm2_path, tmp_path, "float32", row_by_row=False)
    assert (wrong, cycles > 200) == (0, True)


@pytest.mark.slow
@pytest.mark.parametrize("row_by_row", [True, False])
def test_in_int8_nearly_every_cycle_is_the_traces(
    smollm2_path: Path, tmp_path: Path, row_by_row: bool
) -> None:
    wrong, cycles = disagreements(smollm2_path, tmp_path, "int8", row_by_row=row_by_row)
    # The scale of a pass depends on the rows that share it, and the rounding of the target's
    # features on its tree. What that moves is within the step of the int8 codes, under 1 % of the
    # largest input, so that only close decisions between candidates can turn.
    assert wrong <= (0.01 if row_by_row else 0.05) * cycles
    assert cycles > 200
