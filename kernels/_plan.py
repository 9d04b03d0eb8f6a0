"""Compile-time constants of a launch: sizes, settings, tiles, layout of scratch memory."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

# Elements that a program holds at a time in the parts that it runs alone.
_TILE = 4096
# Bytes of a later layer's weights that a thread holds at a time: 64 registers. Where it multiplies
# several sequences by them, it widens them once, and holds bytes for each warp: so few that all
# else of the sequences, of which fewer threads hold more each, fits beside them.
_HELD_BYTES, _HELD_BYTES_OF_WARPS = 256, 8
_FEW_REGISTERS = 168
_LINE = 32  # float32 numbers of a cache line
_VECTOR = 4  # float32 numbers of the widest load
# Fewest inputs of a later layer's tile: 64 bytes of the narrowest type.
_FEWEST_INPUTS = 32


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
        itemsize: bytes of a weight.
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
        parts: partial sums of an output of the first layer that the last program adds.
        steps: tiles of inputs that a program of a folded product reads, one after the other.
        gathered: programs whose partial sums one of them adds before that; 0 for none.
        interpreted: whether Triton's interpreter runs the kernel.
    """

    policy: Policy
    itemsize: int
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
    parts: int
    steps: int
    gathered: int
    interpreted: bool
    # Numbers of each layer's matrix; only the later layers' are used.
    sizes: tuple[int, ...] = field(init=False)
    # Offsets in a sequence's scratch memory. It holds the parts of the first layer, (outputs,
    # stride); each program's partial sums, if they are gathered first; sums of squares,
    # activations, what is compared, a flag (whether the action is kept) and the norm of what is
    # compared.
    stride: int = field(init=False)
    gathers_at: int = field(init=False)
    squares_at: int = field(init=False)
    activations_at: int = field(init=False)
    compared_at: int = field(init=False)
    flag_at: int = field(init=False)
    scratch: int = field(init=False)
    # Whether the last program applies the features' scales, and to how many chunks of the parts.
    scales: bool = field(init=False)
    scaled_chunks: int = field(init=False)
    # Whether activations stay in registers between the layers.
    holds: bool = field(init=False)
    # Tile sizes of the parts that one program runs alone.
    block_actions: int = field(init=False)
    block_compared: int = field(init=False)
    block_sketch: int = field(init=False)
    block_shared: int = field(init=False)
    block_first: int = field(init=False)
    block_parts: int = field(init=False)
    block_out: int = field(init=False)
    block_in: int = field(init=False)
    # Outputs of a later layer's tile, if activations stay in registers.
    tile_outs: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        widths = self.policy.widths
        # An output's parts are next to each other, to be read 16 bytes at a time.
        stride = -(-self.parts // _VECTOR) * _VECTOR
        object.__setattr__(self, "stride", stride)
        matrices = (0, *(a * b for a, b in itertools.pairwise(widths)))
        object.__setattr__(self, "sizes", matrices)
        sizes = {
            "gathers_at": stride * widths[0],
            "squares_at": self.programs * widths[0] if self.gathered else 0,
            "activations_at": self.parts,
            "compared_at": 2 * max(widths[:-1]),
            "flag_at": self.compared,
            "scratch": 2,
        }
        place = 0
        for name, size in sizes.items():
            place += -(-size // _LINE) * _LINE
            object.__setattr__(self, name, place)
        for name, size in self._blocks().items():
            object.__setattr__(self, name, size)

    def _blocks(self) -> dict[str, Any]:
        widths, tile = self.policy.widths, _TILE // self.group
        hidden = max(_FEWEST_INPUTS, power_of_two(max(widths[:-1])))
        threads = 32 * self.tiles.num_warps
        held = threads * _HELD_BYTES // self.itemsize
        holds = self.group == 1 and hidden**2 <= held
        # Fewer inputs than threads, or the compiler would give weights the inputs' layout.
        block_in = hidden if holds else max(min(hidden, threads // 2), _FEWEST_INPUTS)
        # A quarter as many outputs, where the next tile's weights would not fit beside them.
        out = held if self.tiles.max_registers > _FEW_REGISTERS else held // 4
        shared = threads * self.tiles.num_warps * _HELD_BYTES_OF_WARPS // self.itemsize
        most_out = (out if holds else shared) // block_in
        block_out = max(min(power_of_two(max(widths[1:])), most_out), 1)
        lines = max(tile // 4 // max(self.compared, 1), 1)
        scales = self.policy.norm_chunks > 0 and not self.policy.features
        scaled_chunks = self.policy.norm_chunks if scales else 1
        block_parts = min(power_of_two(self.parts // scaled_chunks), 64)
        first = min(power_of_two(widths[0]), max(tile // block_parts, 1))
        return {
            "scales": scales,
            "scaled_chunks": scaled_chunks,
            "holds": holds,
            "block_actions": power_of_two(self.policy.actions),
            "block_compared": min(power_of_two(max(self.compared, 1)), tile),
            # A fused launch's last program compares several sequences beside their sums.
            "block_sketch": 1 if self.policy.features and self.group > 1 else lines,
            "block_shared": min(power_of_two(widths[0]), 128),
            "block_first": block_in if holds else first,
            "block_parts": block_parts,
            "block_in": block_in,
            "block_out": block_out,
            "tile_outs": (0, *(min(block_out, block_in) for _ in widths[1:-1]), block_out),
        }


def power_of_two(count: int) -> int:
    """Return the smallest power of two that is at least ``count``."""
    return 1 << (count - 1).bit_length()
