"""The policy's MLP in one program, after the products that many programs share.

Rows are the sequences of one group, (S,). Activations go through scratch memory between layers, so
a layer may have any width; each sequence has its own row of scratch memory (see `Plan`).
"""

import triton
import triton.language as tl


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """Apply tanh, relu or silu; NaN stays NaN."""
    if ACTIVATION == "tanh":
        # exp of the negated magnitude cannot overflow. Near 0, where 1 - decay would cancel, the
        # Taylor series is used: below |x| = 0.25 its next term is below float32's precision.
        decay = tl.exp(-2.0 * tl.abs(x))
        magnitude = (1.0 - decay) / (1.0 + decay)
        square = x * x
        series = square * (62.0 / 2835.0) - 17.0 / 315.0
        series = (series * square + 2.0 / 15.0) * square - 1.0 / 3.0
        series = x + x * square * series
        return tl.where(square < 0.0625, series, tl.where(x < 0.0, -magnitude, magnitude))
    elif ACTIVATION == "relu":
        return tl.where(x < 0.0, 0.0, x)
    else:
        tl.static_assert(ACTIVATION == "silu", "activation must be tanh, relu or silu")
        return x / (1.0 + tl.exp(-x))


@triton.jit
def sum_partials(partial_ptr, first, count, output, mask, PLAN: tl.constexpr):
    """Add the first layer's partial sums (S, O) over programs, always in the same order.

    Args:
        partial_ptr: (S,) each sequence's first partial sum.
        first: the first program to add.
        count: number of programs.
        output: (O,) indices of the layer's outputs.
        mask: (S,) sequences that take part.
        PLAN: see `Plan`.
    """
    GROUP: tl.constexpr = PLAN.group
    PROGRAMS: tl.constexpr = PLAN.block_programs
    OUT: tl.constexpr = PLAN.block_first
    total = tl.zeros((GROUP, PROGRAMS, OUT), tl.float32)
    inside = mask[:, None, None] & (output < PLAN.policy.widths[0])[None, None, :]
    for start in range(0, count, PROGRAMS):
        program = start + tl.arange(0, PROGRAMS)[None, :, None]
        offset = (first + program) * PLAN.policy.widths[0] + output[None, None, :]
        total += tl.load(
            partial_ptr[:, None, None] + offset,
            mask=inside & (program < count),
            other=0.0,
            # Bypasses L1: other multiprocessors wrote them.
            cache_modifier=".cg",
        )
    return tl.sum(total, axis=1)


@triton.jit
def chunk_scale(squares_ptr, first, count, elements, mask, PLAN: tl.constexpr):
    """Return inverse root mean squares (S,) from the programs' sums of squares."""
    GROUP: tl.constexpr = PLAN.group
    PROGRAMS: tl.constexpr = PLAN.block_programs
    total = tl.zeros((GROUP, PROGRAMS), tl.float32)
    for start in range(0, count, PROGRAMS):
        program = start + tl.arange(0, PROGRAMS)[None, :]
        total += tl.load(
            squares_ptr[:, None] + first + program,
            mask=mask[:, None] & (program < count),
            other=0.0,
            cache_modifier=".cg",
        )
    return 1.0 / tl.sqrt_rn(tl.sum(total, axis=1) / elements + PLAN.policy.eps)


@triton.jit
def run_first_layer(row_ptr, bias_ptr, mask, PLAN: tl.constexpr):
    """Finish the first layer of sequences (S,) whose scratch memory holds partial sums.

    If the features are normalised and there is no FC before the layer, the partial sums are of
    features without their scales, which are applied here.
    """
    ACTIVATION: tl.constexpr = PLAN.policy.activation
    CHUNKS: tl.constexpr = 0 if PLAN.policy.features else PLAN.policy.norm_chunks
    parts: tl.constexpr = CHUNKS if CHUNKS else 1
    count: tl.constexpr = PLAN.programs // parts
    elements: tl.constexpr = PLAN.policy.k * PLAN.policy.chunks // parts
    for start in range(0, PLAN.policy.widths[0], PLAN.block_first):
        output = start + tl.arange(0, PLAN.block_first)
        inside = output < PLAN.policy.widths[0]
        total = tl.load(bias_ptr + output, mask=inside, other=0.0)[None, :]
        for part in tl.static_range(parts):
            sums = sum_partials(row_ptr, part * count, count, output, mask, PLAN)
            if CHUNKS:
                scale = chunk_scale(
                    row_ptr + PLAN.squares_at, part * count, count, elements, mask, PLAN
                )
                sums *= scale[:, None]
            total += sums
        tl.store(
            (row_ptr + PLAN.activations_at)[:, None] + output[None, :],
            activate(total, ACTIVATION),
            mask=mask[:, None] & inside[None, :],
        )


@triton.jit
def run_layer(
    input_ptr, weight_ptr, bias_ptr, output_ptr, mask,
    LAYER: tl.constexpr, PLAN: tl.constexpr,
):  # fmt: skip
    """Run a later layer on rows (S,), given pointers to their inputs and outputs."""
    GROUP: tl.constexpr = PLAN.group
    ACTIVATION: tl.constexpr = PLAN.policy.activation
    BLOCK_OUT: tl.constexpr = PLAN.block_out
    IN: tl.constexpr = PLAN.policy.widths[LAYER - 1]
    OUT: tl.constexpr = PLAN.policy.widths[LAYER]
    for first in range(0, OUT, BLOCK_OUT):
        output = first + tl.arange(0, BLOCK_OUT)
        bias = tl.load(bias_ptr + output, mask=output < OUT, other=0.0)
        total = tl.zeros((GROUP, BLOCK_OUT), tl.float32)
        for start in range(0, IN, PLAN.block_in):
            element = start + tl.arange(0, PLAN.block_in)
            weight = tl.load(
                weight_ptr + output[:, None] * IN + element[None, :],
                mask=(output < OUT)[:, None] & (element < IN)[None, :],
                other=0.0,
            )
            value = tl.load(
                input_ptr[:, None] + element[None, :],
                mask=mask[:, None] & (element < IN)[None, :],
                other=0.0,
            )
            total += tl.sum(value[:, None, :] * weight.to(tl.float32)[None, :, :], axis=2)
        total += bias[None, :]
        if len(PLAN.policy.widths) - 1 > LAYER:
            total = activate(total, ACTIVATION)
        tl.store(
            output_ptr[:, None] + output[None, :],
            total,
            mask=mask[:, None] & (output < OUT)[None, :],
        )


@triton.jit
def run_mlp(row_ptr, weights, biases, logits_ptr, mask, PLAN: tl.constexpr):
    """Compute the logits from the partial sums of the first layer.

    Args:
        row_ptr: (S,) the sequences' scratch memory.
        weights: matrices of all layers.
        biases: vectors of all layers.
        logits_ptr: (S,) where the logits go.
        mask: (S,) sequences that take part.
        PLAN: see `Plan`.
    """
    last: tl.constexpr = len(PLAN.policy.widths) - 1
    run_first_layer(row_ptr, biases[0], mask, PLAN)
    tl.debug_barrier()
    source_ptr = row_ptr + PLAN.activations_at
    half: tl.constexpr = (PLAN.compared_at - PLAN.activations_at) // 2
    for layer in tl.static_range(1, last):
        target_ptr = row_ptr + PLAN.activations_at + layer % 2 * half
        run_layer(source_ptr, weights[layer], biases[layer], target_ptr, mask, layer, PLAN)
        tl.debug_barrier()
        source_ptr = target_ptr
    run_layer(source_ptr, weights[last], biases[last], logits_ptr, mask, last, PLAN)
    tl.debug_barrier()
