#!/usr/bin/env bash
# triton 3.6.0 and 3.9.0: an attribute of a constexpr is a compile-time constant of its own only in
# the newer one.
#
# A frozen dataclass is passed as a tl.constexpr, and its fields are used in five ways; everything is
# compiled ahead of time for sm_90. Expected: PLAN.size is as constant as PLAN.
#
# Seen with 3.6.0, which torch 2.11 asks for:
#   tl.arange(0, PLAN.size)                      compiles
#   SIZE: tl.constexpr = PLAN.size, then (SIZE,) compiles
#   tl.zeros((PLAN.size,), ...)                  AttributeError: 'int' object has no attribute 'type'
#   helper(x, PLAN.name), a constexpr parameter  AttributeError: 'str' object has no attribute 'type'
#   helper(x, PLAN.inner), likewise              AttributeError: 'Inner' object has no attribute 'type'
# With 3.9.0 all five compile. A kernel that is written against 3.9.0 has to give such attributes a
# name first to compile with both.
#
# Ends with an error if any of this is no longer seen.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/fields.py" <<'PYTHON'
import dataclasses
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int = 8


@dataclasses.dataclass(frozen=True)
class Plan:
    size: int = 16
    name: str = "double"
    inner: Inner = Inner()


@triton.jit
def scale(x, NAME: tl.constexpr):
    return x * 2 if NAME == "double" else x


@triton.jit
def shift(x, INNER: tl.constexpr):
    return x + INNER.size


@triton.jit
def in_arange(p, PLAN: tl.constexpr):
    tl.store(p + tl.arange(0, PLAN.size), 1.0)


@triton.jit
def by_name(p, PLAN: tl.constexpr):
    SIZE: tl.constexpr = PLAN.size
    tl.store(p + tl.arange(0, SIZE), tl.zeros((SIZE,), tl.float32))


@triton.jit
def in_shape(p, PLAN: tl.constexpr):
    tl.store(p + tl.arange(0, PLAN.size), tl.zeros((PLAN.size,), tl.float32))


@triton.jit
def string_argument(p, PLAN: tl.constexpr):
    tl.store(p, scale(tl.load(p), PLAN.name))


@triton.jit
def object_argument(p, PLAN: tl.constexpr):
    tl.store(p, shift(tl.load(p), PLAN.inner))


found = {}
for kernel in (in_arange, by_name, in_shape, string_argument, object_argument):
    source = ASTSource(kernel, {"p": "*fp32", "PLAN": "constexpr"}, {(1,): Plan()})
    try:
        triton.compile(source, target=GPUTarget("cuda", 90, 32))
        found[kernel.fn.__name__] = "compiles"
    except triton.CompilationError as error:
        found[kernel.fn.__name__] = str(error).splitlines()[-1]
print(f"triton {triton.__version__}")
for name, outcome in found.items():
    print(f"  {name}: {outcome}")
refused = {name for name, outcome in found.items() if "has no attribute 'type'" in outcome}
assert refused == set(sys.argv[1:]), refused
assert all(found[name] == "compiles" for name in found.keys() - refused), found
PYTHON
export TRITON_CACHE_DIR="$work/cache"
for version in 3.6.0 3.9.0; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/pip" install -q "triton==$version"
done
"$work/3.6.0/bin/python" "$work/fields.py" in_shape string_argument object_argument
"$work/3.9.0/bin/python" "$work/fields.py"
