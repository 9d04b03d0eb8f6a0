"""What a launch knows when it is compiled: sizes, settings, tiles, and scratch memory's layout."""

from __future__ import annotations

from dataclasses import dataclass, field

# Numbers that one program holds at a time of a matrix, in the parts that one program runs alone.
_TILE = 4096
_LINE = 32  # float32 numbers of a cache line


@dataclass(frozen=True)
class Policy:
    """The policy's sizes and settings; see ``PolicyWeights``.

    Attributes:
        k: Width of each of the inputs: of a feature layer, or of reduced features.
        chunks: Inputs side by side, 3 or 1.
        features: h, width of g where the launch computes it, else 0.
        widths: Of all layers of the MLP, the logits' last.
        actions: A.
        horizon: Decisions at once.
        fallback: The action where a logit is not finite.
        activation: "tanh", "relu" or "silu".
        norm_chunks: 0, 1 or 3.
        eps: Added to a chunk's mean square.
    """

    k: int
    chunks: int
    features: int
    widths: tuple[int, ...]
    actions: int
    horizon: int
    fallback: int
    activation: str
    norm_chunks: int
    eps: float


@dataclass(frozen=True)
class Tiles:
    """How the launch is cut up; what a tuning chooses.

    Attributes:
        rows: Rows of the FC that a program multiplies, or sequences of a folded product.
        columns: Outputs that it computes.
        elements: Inputs that it reads at a time.
        num_warps: Warps of a program.
        num_stages: Depth of the software pipeline where the product is a matrix product.
        max_registers: That a thread may have on NVIDIA's devices. Left to itself, ptxas spills some
            for the sake of a number of programs at a time that is not needed here.
    """

    rows: int
    columns: int
    elements: int
    num_warps: int = 4
    num_stages: int = 3
    max_registers: int = 168


@dataclass(frozen=True)
class Plan:
    """The constant of a launch. All fields are in its repr, by which compiled kernels are kept.

    Attributes:
        policy: See `Policy`.
        tiles: See `Tiles`.
        group: Sequences that one program decides at a time (a power of two).
        has_cache: Whether there is an action cache.
        scheduled: Whether its mode is "scheduled".
        compare: What adaptive mode compares, see ``_action_cache``.
        compared: Width of that.
        samples: Whether actions are drawn.
        encodes_all: Whether g of all rows is wanted.
        precision: Of matrix products, see ``tl.dot``; None where rows are multiplied as vectors.
        programs: Programs that share a sequence's product.
        interpreted: Whether Triton's interpreter will run the kernel.
    """

    policy: Policy
    tiles: Tiles
    group: int
    has_cache: bool
    scheduled: bool
    compare: int
    compared: int
    samples: bool
    encodes_all: bool
    precision: str | None
    programs: int
    interpreted: bool
    # Scratch memory of a sequence: partial sums of the first layer, sums of squares, activations,
    # what is compared, and last whether the action is kept and the norm of what is compared.
    squares_at: int = field(init=False)
    activations_at: int = field(init=False)
    compared_at: int = field(init=False)
    flag_at: int = field(init=False)
    scratch: int = field(init=False)
    # Tiles of the parts that one program runs alone.
    block_actions: int = field(init=False)
    block_compared: int = field(init=False)
    block_sketch: int = field(init=False)
    block_first: int = field(init=False)
    block_programs: int = field(init=False)
    block_out: int = field(init=False)
    block_in: int = field(init=False)

    def __post_init__(self) -> None:
        widths = self.policy.widths
        sizes = {
            "squares_at": self.programs * widths[0],
            "activations_at": self.programs,
            "compared_at": 2 * max(widths[:-1]),
            "flag_at": self.compared,
            "scratch": 2,
        }
        place = 0
        for name, size in sizes.items():
            place += -(-size // _LINE) * _LINE
            object.__setattr__(self, name, place)
        tile = _TILE // self.group
        first = min(power_of_two(widths[0]), 128)
        block_in = min(power_of_two(max(widths[:-1])), 128)
        blocks = {
            "block_actions": power_of_two(self.policy.actions),
            "block_compared": min(power_of_two(max(self.compared, 1)), tile),
            "block_sketch": max(tile // 4 // max(self.compared, 1), 1),
            "block_first": first,
            "block_programs": min(power_of_two(self.programs), max(tile // first, 1)),
            "block_in": block_in,
            "block_out": min(power_of_two(max(widths[1:])), max(tile // block_in, 1)),
        }
        for name, size in blocks.items():
            object.__setattr__(self, name, size)


def power_of_two(count: int) -> int:
    """Return the smallest power of two that is at least ``count``."""
    return 1 << (count - 1).bit_length()
