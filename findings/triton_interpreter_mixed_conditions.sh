#!/usr/bin/env bash
# Triton 3.9.0: the interpreter refuses a mask that the compiler takes, a block of conditions `&` a
# scalar one.
#
# Expected: `lane < n` is a block of int1 and `level > 0` a scalar int1, so `(lane < n) & (level > 0)`
# is a block of int1 and may be the mask of a load, in the interpreter as on a device.
#
# Seen: compiled ahead of time for sm_90, the kernel becomes PTX. With TRITON_INTERPRET=1 the product
# has the type int1 but holds 32-bit integers, and the load raises "mask has unsupported dtype".
# Either condition alone works, and so does a scalar that is made a block before it is compared.
#
# Ends with an error if any of this is no longer seen.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q triton==3.9.0 torch==2.13.0 numpy
cat > "$work/kernel.py" <<'PY'
import triton
import triton.language as tl


@triton.jit
def masked_sum(data_ptr, out_ptr, n, level, MADE_A_BLOCK: tl.constexpr):
    lane = tl.arange(0, 16)
    if MADE_A_BLOCK:
        mask = (lane < n) & (lane * 0 + level > 0)
    else:
        mask = (lane < n) & (level > 0)
    tl.store(out_ptr, tl.sum(tl.load(data_ptr + lane, mask=mask, other=0.0), 0))
PY
cat > "$work/compiled.py" <<'PY'
import triton
from kernel import masked_sum
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

types = {"data_ptr": "*fp32", "out_ptr": "*fp32", "n": "i32", "level": "i32"}
source = ASTSource(masked_sum, types | {"MADE_A_BLOCK": "constexpr"}, {(4,): False})
ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
print("compiled to", len(ptx.splitlines()), "lines of PTX")
assert ".target sm_90" in ptx
PY
cat > "$work/interpreted.py" <<'PY'
import torch
from kernel import masked_sum

data, out = torch.arange(16.0), torch.zeros(1)
masked_sum[(1,)](data, out, 5, 1, True)
print("a block of both:", out.item())
assert out.item() == 10.0
try:
    masked_sum[(1,)](data, out, 5, 1, False)
except Exception as error:
    print("a block and a scalar:", error)
    assert "mask has unsupported dtype" in str(error)
else:
    raise SystemExit("the interpreter takes the mask now")
PY
cd "$work"
venv/bin/python compiled.py
TRITON_INTERPRET=1 venv/bin/python interpreted.py
