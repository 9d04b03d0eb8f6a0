"""Brings what the last program will read into the L2 cache, before it takes its ticket."""

import triton
import triton.language as tl


@triton.jit
def warm_l2(weights, biases, actions_ptr, part, PLAN: tl.constexpr):
    """Read this program's share of the later layers, of all biases and of the actions.

    The last program would otherwise wait for the device's memory, about 500 ns, once for every
    layer. Nothing uses what is read, so the program goes on at once; its ticket orders these loads,
    too, before those of the last program. The share is small: 1 KB of 84 KB, if 96 programs share
    two layers of 128 x 128 and 128 x 203 in bfloat16.

    Args:
        weights: matrices of all layers.
        biases: vectors of all layers.
        actions_ptr: (A, columns) parameters of the actions.
        part: number of the program.
        PLAN: see `Plan`.
    """
    layers: tl.constexpr = len(PLAN.policy.widths)
    for layer in tl.static_range(layers):
        if layer > 0:
            _read_share(weights[layer], part, PLAN.sizes[layer], PLAN)
        _read_share(biases[layer], part, PLAN.policy.widths[layer], PLAN)
    _read_share(actions_ptr, part, PLAN.policy.actions * PLAN.policy.columns, PLAN)


@triton.jit
def _read_share(ptr, part, COUNT: tl.constexpr, PLAN: tl.constexpr):
    """Read one of as many shares of a tensor as there are programs."""
    # A sector of the cache, 32 bytes, at least; whole vectors, which are read 16 bytes at a time.
    SECTOR: tl.constexpr = 256 // ptr.dtype.element_ty.primitive_bitwidth
    share: tl.constexpr = (COUNT + PLAN.programs * SECTOR - 1) // (PLAN.programs * SECTOR) * SECTOR
    BLOCK: tl.constexpr = triton.next_power_of_2(share)
    element = tl.arange(0, BLOCK)
    place = part * share + element
    # Volatile, or the compiler would leave out a load whose result nothing needs.
    tl.load(ptr + place, mask=(element < share) & (place < COUNT), volatile=True)
