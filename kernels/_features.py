"""Reads features (low, mid, high): rows by index, and sketches of them."""

import triton
import triton.language as tl


@triton.jit
def find_input_row(rows_ptr, last_ptr, position, active, n_inputs, n_rows):
    """Return the input rows at positions (S,), int64, and which of them exist.

    The indices are on the device, and reporting one out of range would mean waiting for it.
    Instead, such a row reads as NaN, and no memory outside the input is read.
    """
    row = position.to(tl.int64)
    if last_ptr is not None:
        row = tl.load(last_ptr + position, mask=active, other=-1)
        active = active & (row >= 0) & (row < n_rows)
    if rows_ptr is not None:
        row = tl.load(rows_ptr + row, mask=active, other=-1)
    exists = active & (row >= 0) & (row < n_inputs)
    return tl.where(exists, row, 0), exists


@triton.jit
def sketch_sign(element):
    """Return the sign of an element in the sketch: the top bit of a multiplicative hash."""
    return tl.where((element.to(tl.uint32) * 2654435769) >> 31 != 0, -1.0, 1.0)


@triton.jit
def sketch_features(inputs, strides, input_row, exists, PLAN: tl.constexpr):
    """Return count sketches (S, buckets) of rows, each chunk divided by its root mean square.

    The formula is in ``csrc/policy/action_cache.h``. Blocks start at multiples of the number of
    buckets, counted over the whole row: a lane then has the same bucket in every block, even if a
    chunk starts between two multiples.
    """
    K: tl.constexpr = PLAN.policy.k
    GROUP: tl.constexpr = PLAN.group
    BUCKETS: tl.constexpr = PLAN.compared
    LINES: tl.constexpr = PLAN.block_sketch
    line = tl.arange(0, LINES)[None, :, None] * BUCKETS
    bucket = tl.arange(0, BUCKETS)[None, None, :]
    total = tl.zeros((GROUP, BUCKETS), tl.float32)
    for chunk in tl.static_range(3):
        row_ptr = (inputs[chunk] + input_row * strides[chunk])[:, None, None]
        sketch = tl.zeros((GROUP, LINES, BUCKETS), tl.float32)
        square = tl.zeros((GROUP, LINES, BUCKETS), tl.float32)
        first = chunk * K // BUCKETS * BUCKETS
        for start in range(first, (chunk + 1) * K, LINES * BUCKETS):
            element = start + line + bucket
            inside = (element >= chunk * K) & (element < (chunk + 1) * K)
            x = tl.load(
                row_ptr + (element - chunk * K), mask=exists[:, None, None] & inside, other=0.0
            ).to(tl.float32)
            sketch += x * sketch_sign(element)
            square += x * x
        mean = tl.sum(tl.sum(square, axis=2), axis=1) / K
        total += tl.sum(sketch, axis=1) / tl.sqrt_rn(mean + PLAN.policy.eps)[:, None]
    return tl.where(exists[:, None], total, float("nan"))
