"""What a machine with torch, transformers and Triton alone can do."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Packages that a machine without a network need not have.
MISSING = ("gguf", "gymnasium", "stable_baselines3", "onnx", "ray", "fastapi", "uvicorn")
PROGRAM = f"""
import sys

sys.modules.update(dict.fromkeys({MISSING!r}))

import torch
from eaglerl.eagle3 import SpeculativeDecoder
from eaglerl.eagle3.target.make_target import make_target
from eaglerl.kernels import tune
from eaglerl.ops import fused_encode, select_draft_nodes
from eaglerl.policies import AutoPolicy
from tests.eagle3.tiny import tiny_head, tiny_model

target = make_target(tiny_model(), backend="transformers")
decoder = SpeculativeDecoder(target, tiny_head(target), draft_dtype="float32")
output = decoder.generate([3, 1, 4], AutoPolicy(), max_new_tokens=8)
assert output.sequences.shape == (1, 11)
"""


def test_decoding_needs_no_other_packages() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
