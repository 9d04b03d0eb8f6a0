"""Compile-time constants of a launch: sizes, settings, tiles, layout of scratch memory."""

from __future__ import annotations

from dataclasses import dataclass, field

# Elements of a matrix that a program holds at a time in the parts that it runs alone.
_TILE = 4096
_LINE = 32  # float32 numbers of a cache line


@dataclass(frozen=True)
class Policy:
    """The policy's sizes and settings; see ``PolicyWeights``.

    Attributes:
        k: width of each input: of a feature layer, or of reduced features.
        chunks: number of inputs: 3 feature layers, or 1.
        features: h, the width of g if the launch computes it, else 0.
        widths: widths of all layers of the MLP; the last is that of the logits.
        actions: a, the number of actions.
        columns: parameters of each action: 3, or 4 with lookup_tokens.
        horizon: decisions that one call makes.
        fallback: the action to take if a logit is not finite.
        activation: "tanh", "relu" or "silu".
        norm_chunks: 0, 1 or 3.
        eps: added to a chunk's mean square.
    """

    k: int
    chunks: int
    features: int
    widths: tuple[int, ...]
    actions: int
    columns: int
    horizon: int
    fallback: int
    activation: str
    norm_chunks: int
    eps: float


@dataclass(frozen=True)
class Tiles:
    """How a launch is divided into programs: what tuning chooses.

    Attributes:
        rows: rows of the FC that a program multiplies, or sequences of a folded product.
        columns: outputs that a program computes.
        elements: inputs that a program reads at a time.
        num_warps: warps of a program.
        num_stages: depth of the software pipeline of matrix products.
        max_registers: most registers of a thread on NVIDIA devices. By default, ptxas spills
            registers to run more programs at a time than are needed here.
    """

    rows: int
    columns: int
    elements: int
    num_warps: int = 4
    num_stages: int = 3
    max_registers: int = 168


@dataclass(frozen=True)
class Plan:
    """The constants of a launch. Compiled kernels are cached by its repr, which has all fields.

    Attributes:
        policy: see `Policy`.
        tiles: see `Tiles`.
        group: sequences that one program decides at a time (a power of two).
        has_cache: whether there is an action cache.
        scheduled: whether its mode is "scheduled".
        compare: what adaptive mode compares, see ``_action_cache``.
        compared: width of what is compared.
        samples: whether actions are drawn.
        encodes_all: whether g of all rows is returned.
        precision: precision of matrix products, see ``tl.dot``; None for products of vectors.
        programs: programs that share a sequence's product.
        interpreted: whether Triton's interpreter runs the kernel.
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
    # Offsets in a sequence's scratch memory. It holds partial sums of the first layer, sums of
    # squares, activations, what is compared, a flag (whether the action is kept) and the norm of
    # what is compared.
    squares_at: int = field(init=False)
    activations_at: int = field(init=False)
    compared_at: int = field(init=False)
    flag_at: int = field(init=False)
    scratch: int = field(init=False)
    # Tile sizes of the parts that one program runs alone.
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
