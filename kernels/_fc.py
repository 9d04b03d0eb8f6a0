"""The FC's product for one tile of rows and columns, with vectors or on the tensor cores."""

import triton
import triton.language as tl


@triton.jit
def encode_tile(
    inputs, strides, input_row, exists, norm_weight_ptr, fc_weight_ptr, fc_bias_ptr, column,
    PLAN: tl.constexpr,
):  # fmt: skip
    """Return g (R, C) in float32 for rows of the input and columns of the FC.

    A chunk's sum of squares comes from the same pass, and the chunk's product is divided by the
    root mean square afterwards, so features are read once. Rows that do not exist give NaN.
    """
    ROWS: tl.constexpr = PLAN.tiles.rows
    COLUMNS: tl.constexpr = PLAN.tiles.columns
    K: tl.constexpr = PLAN.policy.k
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    squares = tl.zeros((ROWS,), tl.float32)
    for chunk in tl.static_range(3):
        x_ptr = inputs[chunk] + input_row * strides[chunk]
        weight_ptr = fc_weight_ptr + column.to(tl.int64) * (3 * K) + chunk * K
        scale_ptr = None if norm_weight_ptr is None else norm_weight_ptr + chunk * K
        inside = column < PLAN.policy.features
        if PLAN.precision is None:
            product, square = _multiply_vectors(x_ptr, exists, weight_ptr, inside, scale_ptr, PLAN)
        else:
            product, square = _multiply_matrices(x_ptr, exists, weight_ptr, inside, scale_ptr, PLAN)
        if PLAN.policy.norm_chunks == 3:
            product /= tl.sqrt_rn(square / K + PLAN.policy.eps)[:, None]
        total += product
        squares += square
    if PLAN.policy.norm_chunks == 1:
        total /= tl.sqrt_rn(squares / (3 * K) + PLAN.policy.eps)[:, None]
    if fc_bias_ptr is not None:
        total += tl.load(fc_bias_ptr + column, mask=column < PLAN.policy.features, other=0.0)[None]
    return tl.where(exists[:, None], total, float("nan"))


@triton.jit
def _multiply_vectors(x_ptr, exists, weight_ptr, inside, scale_ptr, PLAN: tl.constexpr):
    """Return products (R, C) and sums of squares (R,) of one chunk, for few rows.

    The weights are read once. Sums stay distributed over the threads and are reduced at the end.
    """
    ROWS: tl.constexpr = PLAN.tiles.rows
    COLUMNS: tl.constexpr = PLAN.tiles.columns
    ELEMENTS: tl.constexpr = PLAN.tiles.elements
    product = tl.zeros((ROWS, COLUMNS, ELEMENTS), tl.float32)
    square = tl.zeros((ROWS, 1, ELEMENTS), tl.float32)
    for start in range(0, PLAN.policy.k, ELEMENTS):
        element = start + tl.arange(0, ELEMENTS)[None, None, :]
        available = element < PLAN.policy.k
        weight = tl.load(
            weight_ptr[None, :, None] + element,
            mask=inside[None, :, None] & available,
            other=0.0,
            # Every weight is read once, by one program.
            eviction_policy="evict_first",
        )
        x = tl.load(
            x_ptr[:, None, None] + element, mask=exists[:, None, None] & available, other=0.0
        ).to(tl.float32)
        if PLAN.policy.norm_chunks:
            square += x * x
        if scale_ptr is not None:
            x *= tl.load(scale_ptr + element, mask=available, other=0.0)
        product += x * weight.to(tl.float32)
    return tl.sum(product, axis=2), tl.sum(tl.sum(square, axis=2), axis=1)


@triton.jit
def _multiply_matrices(x_ptr, exists, weight_ptr, inside, scale_ptr, PLAN: tl.constexpr):
    """Return the same for many rows, on the tensor cores, without rounding the inputs.

    Inputs and weights of the same 16-bit type are multiplied directly. With bfloat16 weights, other
    inputs are split into three bfloat16 terms of 8 bits each, which is exact for the 24 bits of
    float32 and loads the weights only once. Everything else is widened to float32.
    """
    ROWS: tl.constexpr = PLAN.tiles.rows
    COLUMNS: tl.constexpr = PLAN.tiles.columns
    product = tl.zeros((ROWS, COLUMNS), tl.float32)
    square = tl.zeros((ROWS,), tl.float32)
    for start in range(0, PLAN.policy.k, PLAN.tiles.elements):
        element = start + tl.arange(0, PLAN.tiles.elements)
        available = element < PLAN.policy.k
        weight = tl.load(
            weight_ptr[:, None] + element[None, :],
            mask=inside[:, None] & available[None, :],
            other=0.0,
        )
        x = tl.load(
            x_ptr[:, None] + element[None, :], mask=exists[:, None] & available[None, :], other=0.0
        )
        if PLAN.policy.norm_chunks:
            wide = x.to(tl.float32)
            square += tl.sum(wide * wide, axis=1)
        if scale_ptr is not None:
            scale = tl.load(scale_ptr + element, mask=available, other=0.0)
            x = x.to(tl.float32) * scale[None, :]
        if x.dtype == weight.dtype:
            product = _dot(x, weight, product, PLAN)
        elif weight.dtype == tl.bfloat16:
            rest = x.to(tl.float32)
            for _ in tl.static_range(3):
                term = rest.to(tl.bfloat16)
                product = _dot(term, weight, product, PLAN)
                rest -= term.to(tl.float32)
        else:
            product = _dot(x.to(tl.float32), weight.to(tl.float32), product, PLAN)
    return product, square


@triton.jit
def _dot(x, weight, product, PLAN: tl.constexpr):
    """Add x (R, E) times the transpose of a weight (C, E) to a product (R, C)."""
    if PLAN.interpreted:
        # The interpreter would multiply the bits of bfloat16 as integers.
        x, weight = x.to(tl.float32), weight.to(tl.float32)
    return tl.dot(x, tl.trans(weight), product, input_precision=PLAN.precision)
