"""The policy's MLP in one program, after the products that many programs share.

Rows are the sequences of one group, (S,). One sequence's activations stay in registers, if its
hidden layers are at most 128 wide. Those of several sequences, or of wider layers, go through
scratch memory between layers; each sequence has its own row of it (see `Plan`).

A layer's matrix is read in tiles of (lines, outputs, elements), a line being 64 bytes of a row. So
four threads read a line, 16 bytes each, and eight rows are read by a warp at a time. A product then
takes two shuffles within a warp, because all else of an output's sum is one thread's, and no sum
goes through shared memory. Over whole rows of 128 bfloat16 numbers, 16 threads would share a sum:
four shuffles for each of four times as many partial sums.
"""

import triton
import triton.language as tl

from eaglerl.kernels._choose import WORST, rank_logits


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
def load_parts(row_ptr, output, mask, PLAN: tl.constexpr):
    """Load the first layer's parts of sequences (S,) and outputs (O,).

    Returns:
        Blocks of parts (S, O, P), and of the sums of squares (S, P) that belong to them, which are
        there if the features are normalised and there is no FC before the layer.
    """
    PARTS: tl.constexpr = PLAN.block_parts
    count: tl.constexpr = PLAN.parts // PLAN.scaled_chunks
    inside = mask[:, None, None] & (output < PLAN.policy.widths[0])[None, :, None]
    sums_ptr = row_ptr[:, None, None] + (output * PLAN.stride)[None, :, None]
    squares_ptr = (row_ptr + PLAN.squares_at)[:, None]
    every: tl.constexpr = PLAN.parts
    sums = ()
    squares = ()
    for first in tl.static_range(0, every, count):
        for start in tl.static_range(0, count, PARTS):
            part = start + tl.arange(0, PARTS)
            # Past L1: other multiprocessors wrote them.
            value = tl.load(
                sums_ptr + first + part[None, None, :],
                mask=inside & (part < count)[None, None, :],
                other=0.0,
                cache_modifier=".cg",
            )
            sums = sums + (value,)
            if PLAN.scales:
                square = tl.load(
                    squares_ptr + first + part[None, :],
                    mask=mask[:, None] & (part < count)[None, :],
                    other=0.0,
                    cache_modifier=".cg",
                )
                squares = squares + (square,)
    return sums, squares


@triton.jit
def finish_first_layer(parts, bias, PLAN: tl.constexpr):
    """Return outputs (S, O) of the first layer from its parts, added in their order.

    If the features are normalised and there is no FC before the layer, the parts are of features
    without their scales, which are applied here.
    """
    sums, squares = parts
    chunks: tl.constexpr = PLAN.scaled_chunks
    blocks: tl.constexpr = len(sums) // chunks
    elements: tl.constexpr = PLAN.policy.k * PLAN.policy.chunks // chunks
    total = bias[None, :]
    for chunk in tl.static_range(chunks):
        added = tl.sum(sums[chunk * blocks], axis=2)
        for block in tl.static_range(1, blocks):
            added += tl.sum(sums[chunk * blocks + block], axis=2)
        if PLAN.scales:
            square = tl.sum(squares[chunk * blocks], axis=1)
            for block in tl.static_range(1, blocks):
                square += tl.sum(squares[chunk * blocks + block], axis=1)
            added /= tl.sqrt_rn(square / elements + PLAN.policy.eps)[:, None]
        total += added
    ACTIVATION: tl.constexpr = PLAN.policy.activation
    return activate(total, ACTIVATION)


@triton.jit
def load_tile(weight_ptr, first, start, LAYER: tl.constexpr, OUT: tl.constexpr, PLAN: tl.constexpr):
    """Load weights (lines, OUT, elements) of a layer, from an output and an input on."""
    # 64 bytes; the tile's inputs are at least 32, see `Plan`.
    LINE: tl.constexpr = 512 // weight_ptr.dtype.element_ty.primitive_bitwidth
    width: tl.constexpr = PLAN.policy.widths[LAYER - 1]
    output = first + tl.arange(0, OUT)[None, :, None]
    line = start + tl.arange(0, PLAN.block_in // LINE)[:, None, None] * LINE
    element = line + tl.arange(0, LINE)[None, None, :]
    inside = (output < PLAN.policy.widths[LAYER]) & (element < width)
    return tl.load(weight_ptr + output * width + element, mask=inside, other=0.0)


@triton.jit
def load_bias(bias_ptr, first, LAYER: tl.constexpr, OUT: tl.constexpr, PLAN: tl.constexpr):
    """Load biases (OUT,) of a layer, from an output on."""
    output = first + tl.arange(0, OUT)
    return tl.load(bias_ptr + output, mask=output < PLAN.policy.widths[LAYER], other=0.0)


@triton.jit
def multiply(value, weight):
    """Multiply inputs (in,) of one sequence by weights (lines, outputs, elements)."""
    value = tl.reshape(value, (weight.shape[0], 1, weight.shape[2]))
    return tl.sum(tl.sum(value * weight.to(tl.float32), axis=0), axis=1)


@triton.jit
def join_blocks(blocks):
    """Return vectors (O,) one after the other, and zeros up to a power of two.

    They are then stored at once: for each of several stores, numbers would change threads by shared
    memory and two barriers.
    """
    count: tl.constexpr = triton.next_power_of_2(len(blocks))
    for _ in tl.static_range(len(blocks), count):
        blocks = blocks + (tl.zeros(blocks[0].shape, tl.float32),)
    for _ in tl.static_range(count.bit_length() - 1):
        pairs = ()
        for place in tl.static_range(0, len(blocks), 2):
            pair = tl.permute(tl.join(blocks[place], blocks[place + 1]), (1, 0))
            pairs = pairs + (tl.reshape(pair, (2 * blocks[place].shape[0],)),)
        blocks = pairs
    return blocks[0]


@triton.jit
def run_tiles(
    value, weight, weights, biases, LAYER: tl.constexpr, WIDTH: tl.constexpr, PLAN: tl.constexpr
):
    """Multiply one sequence's inputs by a layer, and add its biases, tile by tile.

    Args:
        value: (in,) the inputs.
        weight: the layer's first tile.
        weights: matrices of all layers.
        biases: vectors of all layers.
        LAYER: number of the layer.
        WIDTH: how many outputs are wanted; beyond the layer's they are zeros.
        PLAN: see `Plan`.

    Returns:
        Vectors of outputs, and the next layer's first tile. Each tile is asked for before the one
        ahead of it is multiplied.
    """
    OUT: tl.constexpr = PLAN.tile_outs[LAYER]
    outputs = ()
    for first in tl.static_range(0, WIDTH, OUT):
        bias = load_bias(biases[LAYER], first, LAYER, OUT, PLAN)
        later = weight
        if first + OUT < WIDTH:
            later = load_tile(weights[LAYER], first + OUT, 0, LAYER, OUT, PLAN)
        elif len(PLAN.policy.widths) > LAYER + 1:
            later = load_tile(weights[LAYER + 1], 0, 0, LAYER + 1, PLAN.tile_outs[LAYER + 1], PLAN)
        outputs = outputs + (multiply(value, weight) + bias,)
        weight = later
    return outputs, weight


@triton.jit
def run_held(row_ptr, weights, biases, mask, PLAN: tl.constexpr):
    """Compute one sequence's logits from the parts of its first layer, in registers.

    The first tile's weights wait for nothing, so that they arrive with the parts.

    Args:
        row_ptr: (1,) the sequence's scratch memory.
        weights: matrices of all layers.
        biases: vectors of all layers.
        mask: (1,) whether the sequence takes part.
        PLAN: see `Plan`.

    Returns:
        Vectors of logits, see `run_tiles`.
    """
    last: tl.constexpr = len(PLAN.policy.widths) - 1
    ACTIVATION: tl.constexpr = PLAN.policy.activation
    IN: tl.constexpr = PLAN.block_in
    bias = load_bias(biases[0], 0, 0, IN, PLAN)
    parts = load_parts(row_ptr, tl.arange(0, IN), mask, PLAN)
    # Behind the parts, or the compiler would give weights the parts' layout, in shared memory.
    weight = load_tile(weights[1], 0, 0, 1, PLAN.tile_outs[1], PLAN)
    value = tl.reshape(finish_first_layer(parts, bias, PLAN), (IN,))
    for layer in tl.static_range(1, last):
        outputs, weight = run_tiles(value, weight, weights, biases, layer, IN, PLAN)
        value = activate(join_blocks(outputs), ACTIVATION)
    logits, _ = run_tiles(value, weight, weights, biases, last, PLAN.policy.widths[last], PLAN)
    return logits


@triton.jit
def store_held(logits, logits_ptr, mask, PLAN: tl.constexpr):
    """Store one sequence's logits, and return the rank (1,) of the largest; see `rank_logits`."""
    last: tl.constexpr = len(PLAN.policy.widths) - 1
    width: tl.constexpr = PLAN.policy.widths[last]
    OUT: tl.constexpr = logits[0].shape[0]
    best = tl.full((OUT,), WORST, tl.int64)
    for block in tl.static_range(len(logits)):
        index = block * OUT + tl.arange(0, OUT)
        best = tl.maximum(best, rank_logits(logits[block], index, width))
    rank = tl.max(best, axis=0)
    every = join_blocks(logits)
    index = tl.arange(0, every.shape[0])[None, :]
    tl.store(logits_ptr[:, None] + index, every[None, :], mask=mask[:, None] & (index < width))
    return rank + tl.zeros(mask.shape, tl.int64)


@triton.jit
def run_layer(
    rows_ptr, weight_ptr, bias_ptr, output_ptr, last_row, mask,
    LAYER: tl.constexpr, PLAN: tl.constexpr,
):  # fmt: skip
    """Run a later layer on all sequences of a group, whose inputs are in scratch memory.

    Args:
        rows_ptr: the first sequence's inputs; those of the others are a row of scratch memory
            further each.
        weight_ptr: the layer's matrix.
        bias_ptr: its vector.
        output_ptr: (S,) where the outputs go.
        last_row: the last sequence of the group that exists; others read its inputs.
        mask: (S,) sequences whose outputs are written.
        LAYER: number of the layer.
        PLAN: see `Plan`.
    """
    ACTIVATION: tl.constexpr = PLAN.policy.activation
    GROUP: tl.constexpr = PLAN.group
    IN: tl.constexpr = PLAN.block_in
    OUT: tl.constexpr = PLAN.block_out
    width: tl.constexpr = PLAN.policy.widths[LAYER - 1]
    # Enough loads at a time to hide most of their latency.
    UNROLL: tl.constexpr = 4 if GROUP >= 4 else GROUP
    column = tl.arange(0, GROUP)[None, :]
    for first in range(0, PLAN.policy.widths[LAYER], OUT):
        output = first + tl.arange(0, OUT)
        # By columns, or the compiler would move each sequence's sums to other threads.
        total = tl.zeros((OUT, GROUP), tl.float32)
        for start in range(0, width, IN):
            weight = load_tile(weight_ptr, first, start, LAYER, OUT, PLAN)
            element = start + tl.arange(0, IN)
            for number in tl.range(0, GROUP, loop_unroll_factor=UNROLL):
                row_ptr = rows_ptr + tl.minimum(number, last_row) * PLAN.scratch
                value = tl.load(row_ptr + element, mask=element < width, other=0.0)
                total += tl.where(column == number, multiply(value, weight)[:, None], 0.0)
        total += load_bias(bias_ptr, first, LAYER, OUT, PLAN)[:, None]
        if len(PLAN.policy.widths) - 1 > LAYER:
            total = activate(total, ACTIVATION)
        inside = mask[None, :] & (output < PLAN.policy.widths[LAYER])[:, None]
        tl.store(output_ptr[None, :] + output[:, None], total, mask=inside)


@triton.jit
def run_mlp(first_ptr, row_ptr, weights, biases, logits_ptr, last_row, mask, PLAN: tl.constexpr):
    """Compute the logits of a group from the parts of the first layer, through scratch memory.

    Args:
        first_ptr: scratch memory of the group's first sequence.
        row_ptr: (S,) the sequences' scratch memory.
        weights: matrices of all layers.
        biases: vectors of all layers.
        logits_ptr: (S,) where the logits go.
        last_row: see `run_layer`.
        mask: (S,) sequences that take part.
        PLAN: see `Plan`.
    """
    last: tl.constexpr = len(PLAN.policy.widths) - 1
    half: tl.constexpr = (PLAN.compared_at - PLAN.activations_at) // 2
    for start in range(0, PLAN.policy.widths[0], PLAN.block_first):
        output = start + tl.arange(0, PLAN.block_first)
        bias = load_bias(biases[0], start, 0, PLAN.block_first, PLAN)
        value = finish_first_layer(load_parts(row_ptr, output, mask, PLAN), bias, PLAN)
        inside = mask[:, None] & (output < PLAN.policy.widths[0])[None, :]
        tl.store((row_ptr + PLAN.activations_at)[:, None] + output[None, :], value, mask=inside)
    tl.debug_barrier()
    for layer in tl.static_range(1, last):
        rows_ptr = first_ptr + PLAN.activations_at + (layer - 1) % 2 * half
        target_ptr = row_ptr + PLAN.activations_at + layer % 2 * half
        run_layer(rows_ptr, weights[layer], biases[layer], target_ptr, last_row, mask, layer, PLAN)
        tl.debug_barrier()
    rows_ptr = first_ptr + PLAN.activations_at + (last - 1) % 2 * half
    run_layer(rows_ptr, weights[last], biases[last], logits_ptr, last_row, mask, last, PLAN)
    tl.debug_barrier()
