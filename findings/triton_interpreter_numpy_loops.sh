#!/usr/bin/env bash
# triton 3.6.0's interpreter and numpy 2.4.6: a loop whose bound is no constant raises TypeError.
#
# TRITON_INTERPRET=1 runs kernels in numpy. Three kernels add up what another bound says: a loop over
# range(n) with a scalar argument n, one with an n that is loaded, and "while n > 0". Expected: 3 of
# each, as with numpy 2.3.5. The package names no versions of numpy.
#
# Seen with numpy 2.4.6: the interpreter holds scalars as arrays of one element and gives them to
# range(), where numpy 2.4 no longer converts them.
#   range(argument): TypeError('only 0-dimensional arrays can be converted to Python scalars')
#   range(loaded):   the same
#   while:           3
# With numpy 2.3.5 all three give 3. Triton 3.9.0 gives 3 with numpy 2.4.6, too.
#
# Ends with an error if any of this is no longer seen.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/loops.py" <<'PYTHON'
import sys
import warnings

import numpy
import torch
import triton
import triton.language as tl

warnings.simplefilter("ignore")


@triton.jit
def range_of_an_argument(out_ptr, n_ptr, n):
    total = 0
    for _ in range(n):
        total += 1
    tl.store(out_ptr, total)


@triton.jit
def range_of_a_load(out_ptr, n_ptr, n):
    total = 0
    for _ in range(tl.load(n_ptr)):
        total += 1
    tl.store(out_ptr, total)


@triton.jit
def until_zero(out_ptr, n_ptr, n):
    left = tl.load(n_ptr)
    total = 0
    while left > 0:
        total += 1
        left -= 1
    tl.store(out_ptr, total)


print(f"triton {triton.__version__}, numpy {numpy.__version__}")
failed = set()
for kernel in (range_of_an_argument, range_of_a_load, until_zero):
    name, out = kernel.fn.__name__, torch.zeros(1, dtype=torch.int64)
    try:
        kernel[(1,)](out, torch.tensor([3]), 3)
        print(f"  {name}: {out.item()}")
        assert out.item() == 3
    except Exception as error:
        print(f"  {name}: {error}")
        assert "only 0-dimensional arrays can be converted" in str(error)
        failed.add(name)
assert failed == set(sys.argv[1:]), failed
PYTHON
export TRITON_INTERPRET=1
run() {
    "$work/venv/bin/pip" install -q "triton==$1" "numpy==$2"
    "$work/venv/bin/python" "$work/loops.py" "${@:3}"
}
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0
run 3.6.0 2.4.6 range_of_an_argument range_of_a_load
run 3.6.0 2.3.5
run 3.9.0 2.4.6
