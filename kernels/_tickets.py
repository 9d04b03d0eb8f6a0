"""Tickets: who is the last of the programs that share a product, and finishes it.

No program waits for another. A ticket's release and acquire, for the whole device, order what each
program has stored before what the last one loads.
"""

import triton
import triton.language as tl


@triton.jit
def is_last_ticket(ticket_ptr, count):
    """Take one of so many tickets; return whether it is the last. That program resets the counter.

    A barrier within the program must stand before, as one thread takes the ticket: it orders the
    stores of the other threads before that thread's release.
    """
    last = tl.atomic_add(ticket_ptr, 1, sem="acq_rel", scope="gpu") == count - 1
    if last:
        # For the next launch.
        tl.store(ticket_ptr, 0)
    return last


@triton.jit
def is_last_program(
    program, row_tiles, first, end, misses, ticket_ptr, scratch_ptr, PLAN: tl.constexpr
):
    """Take a ticket of one level or of two, behind a barrier; return whether it is the last.

    With two levels, the last of some neighbours adds their partial sums to one part, and takes a
    ticket for all of them. Which one that is does not matter: they are added in their order.

    Args:
        program: this program's number among those that share a sequence's product.
        row_tiles: how many tiles of rows share the tickets.
        first: number of the first sequence.
        end: one more than that of the last.
        misses: 0 if no sequence needs its product.
        ticket_ptr: the ticket of all programs, then those of the parts.
        scratch_ptr: scratch memory, see `Plan`.
        PLAN: see `Plan`.
    """
    tl.debug_barrier()
    if PLAN.gathered:
        part = program // PLAN.gathered
        begin = part * PLAN.gathered
        count = tl.minimum(PLAN.programs - begin, PLAN.gathered)
        last = is_last_ticket(ticket_ptr + 1 + part, count * row_tiles)
        if last:
            if misses > 0:
                for sequence in range(first, end):
                    row_ptr = scratch_ptr + tl.cast(sequence, tl.int64) * PLAN.scratch
                    _gather(row_ptr, part, begin, count, PLAN)
            tl.debug_barrier()
            last = is_last_ticket(ticket_ptr, PLAN.parts)
    else:
        last = is_last_ticket(ticket_ptr, PLAN.programs * row_tiles)
    return last


@triton.jit
def _gather(row_ptr, part, begin, count, PLAN: tl.constexpr):
    """Add partial sums of neighbours from one on, for one sequence."""
    width: tl.constexpr = PLAN.policy.widths[0]
    neighbour = tl.arange(0, PLAN.gathered)[:, None]
    source_ptr = row_ptr + PLAN.gathers_at + (begin + neighbour) * width
    for start in range(0, width, PLAN.block_shared):
        output = start + tl.arange(0, PLAN.block_shared)
        value = tl.load(
            source_ptr + output[None, :],
            mask=(neighbour < count) & (output < width)[None, :],
            other=0.0,
            # Bypasses L1: other multiprocessors wrote them.
            cache_modifier=".cg",
        )
        total_ptr = row_ptr + output * PLAN.stride + part
        tl.store(total_ptr, tl.sum(value, axis=0), mask=output < width)
