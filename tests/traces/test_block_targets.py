"""Greedy continuations of targets in blocks."""

from pathlib import Path

import pytest
import torch

from eaglerl.eagle3 import load_target
from eaglerl.eagle3.target.block_target import BlockTarget
from eaglerl.traces.greedy_continuations import greedy_texts

from ..eagle3.tiny import tiny_model

WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
PROMPTS = [[5, 7, 11], [13, 2], [3, 17, 19, 23, 29]]


@pytest.mark.parametrize("precision", ["native", "int8"])
def test_sequences_side_by_side_write_what_each_writes_alone(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model(**WIDE).save_pretrained(tmp_path)
    target = load_target(tmp_path, weights="q4_1", precision=precision)
    rows, forward = [], BlockTarget.forward

    def counted(self: BlockTarget, batch, *arguments: object):
        rows.append(len(batch))
        return forward(self, batch, *arguments)

    monkeypatch.setattr(BlockTarget, "forward", counted)
    options = {"max_new_tokens": 20, "tail": 2, "eos_token_ids": (), "settings": None}
    texts = {
        slots: sorted(greedy_texts(target, PROMPTS, slots=slots, **options), key=lambda t: t.index)
        for slots in (1, 3)
    }
    for alone, beside in zip(texts[1], texts[3], strict=True):
        assert alone.token_ids == beside.token_ids
        assert torch.equal(alone.features, beside.features)
    # Three prompts, then one pass a token for all of them.
    assert rows[-21:] == [3] * 21
