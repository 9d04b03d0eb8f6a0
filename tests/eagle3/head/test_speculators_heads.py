"""Heads that speculators' own classes wrote, against the logits of its own forward pass.

``speculators/`` holds them, and ``make_heads.py`` there made them with speculators 0.9.0.
The library need not be installed to run this.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.head.module_draft import ModuleDraft
from eaglerl.eagle3.head.packed_draft import PackedDraft

FOLDER = Path(__file__).parent / "speculators"
# Two orders of summation in fp32 through one layer: measured 2e-6.
FP32 = {"rtol": 0, "atol": 2e-5}
RUNNERS = {"module": ModuleDraft, "packed": PackedDraft}
STEPS = 3


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(
    ("name", "window", "qk_norm"),
    [("llama-2048", 2048, False), ("llama-6", 6, False), ("qwen3-6", 6, True)],
)
def test_logits_are_those_of_speculators(
    name: str, window: int, qk_norm: bool, runner: str
) -> None:
    """All defaults of its trainer: a window, both norms, the residual after its norm."""
    head = Eagle3DraftHead.from_pretrained(FOLDER / name)
    config = head.config
    assert (config.sliding_window, config.qk_norm) == (window, qk_norm)
    norms = (config.norm_before_fc, config.norm_feedback, config.norm_before_residual)
    assert norms == (True, True, True)
    assert config.rope_parameters["rope_theta"] == 500_000.0
    assert config.feature_layers == (2, 4, 5)
    expected = load_file(FOLDER / name / "expected.safetensors")
    tokens, features = expected["token_ids"], expected["features"]
    for row in range(len(tokens)):
        draft = RUNNERS[runner](head, capacity=32)
        hidden, logits = draft.extend(tokens[: row + 1], features[: row + 1])
        torch.testing.assert_close(logits, expected["logits"][0, row], **FP32)
        for step in range(1, min(STEPS, len(tokens) - row)):
            mask = torch.tensor([[2**step - 1]])
            token = tokens[row + step : row + step + 1]
            hidden, logits = draft.expand(token, hidden.view(1, -1), step - 1, mask)
            # Its trainer counts a drafted row's window from the stable row that it began at, step
            # positions back; vLLM counts it from the row's own position, as is done here.
            if row + step < window:
                torch.testing.assert_close(logits[0], expected["logits"][step, row], **FP32)
