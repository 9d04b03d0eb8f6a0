"""The decoding loop over a model of the size of Llama 3.2 1B: the text is transformers' own."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from eaglerl.eagle3 import DraftPlan, SpeculativeDecoder, TreeParams
from eaglerl.policies import AutoPolicy

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from bench_gpu import VOCABULARY, random_pair

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton"),
]
DEVICE = torch.device("cuda")
TOKENS = 48
POLICIES = {
    "plain": lambda: TreeParams(1),
    "constant": lambda: TreeParams(32, 5, 4),
    "merged with the text": lambda: DraftPlan(TreeParams(8, 2, 3), 6),
    "by rule": AutoPolicy,
}


@pytest.mark.parametrize("graphs", [False, True], ids=["call by call", "graphs"])
def test_text(graphs: bool) -> None:
    """In float32: where two logits are closer than bfloat16 rounds, a tree may take the other."""
    torch.manual_seed(0)
    target, head = random_pair(2048, DEVICE, None, torch.float32)
    prompt = torch.randint(VOCABULARY, (1, 64), device=DEVICE)
    expected = target.model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=TOKENS
    )
    decoder = SpeculativeDecoder(target, head, cuda_graphs=graphs)
    for name, make in POLICIES.items():
        for _ in range(3 if graphs else 1):
            output = decoder.generate(prompt[0].tolist(), make(), max_new_tokens=TOKENS)
            assert output.sequences.tolist() == expected.tolist(), name
