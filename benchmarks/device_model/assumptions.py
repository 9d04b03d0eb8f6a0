"""What the model of a GPU assumes: data sheets, latencies and their ranges, targets and heads.

Every range encloses what is assumed; nothing here was measured by this project.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Range(NamedTuple):
    """A quantity that is only known to lie between two numbers."""

    low: float
    high: float

    def plus(self, other: Range) -> Range:
        """Return the range of a sum."""
        return Range(self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> Range:
        """Return the range of a product with a positive number."""
        return Range(self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet.

    Attributes:
        name: as it is sold.
        bandwidth: bytes a second of its memory.
        arithmetic: dense bfloat16 operations a second of its tensor cores, without sparsity.
    """

    name: str
    bandwidth: float
    arithmetic: float


DEVICES = (
    Device("H100 SXM", 3.35e12, 989e12),
    Device("H200", 4.8e12, 989e12),
    Device("B200", 8.0e12, 2250e12),
)

#: Seconds that a kernel adds to a CUDA graph. Low: 1.3 us on an H100, measured by Hazy Research for
#: their Llama-1B megakernel (2025). High: assumed, for a stream without a graph.
LAUNCH = Range(1.3e-6, 2.5e-6)
#: Cycles a second of a multiprocessor. High: the boost clock of an H100 SXM; low: assumed, for a
#: device at its power limit.
CLOCK = Range(1.4e9, 1.98e9)
#: Share of the data sheet's bandwidth that a long read reaches. High: the sheet itself. Low: the
#: megakernel's on an H100.
BANDWIDTH_SHARE = Range(0.78, 1.0)
#: Bytes a cycle that one multiprocessor reads from the L2 cache at most; NVIDIA's for an A100,
#: assumed to hold for its successors.
MULTIPROCESSOR_BYTES = 64
#: Share of that rate that one program reaches at least; assumed.
LEAST_SHARE = 0.5

#: Cycles until the result of an instruction can be used, all assumed. They enclose what
#: microbenchmarks of Ampere and Hopper report (Luo et al., arXiv:2402.13499, whose numbers
#: are not copied here).
LATENCIES = {
    "arithmetic": Range(4, 6),
    "special": Range(18, 40),  # exp, sqrt, reciprocal
    "division": Range(60, 140),  # of whole numbers, a subroutine
    "shuffle": Range(23, 33),
    "shared": Range(23, 33),
    # Low: another kernel has just written it, and it is in the L2 cache. High: the draft pass since
    # then has pushed it out, and it comes from the device's memory.
    "load": Range(200, 700),
    # Other programs of the launch have just written it, or read it for this one: it is in L2. High:
    # the farther half of L2, with others waiting.
    "load behind a ticket": Range(200, 300),
    # Low: the first-level cache. High: L2, since another thread has stored it.
    "repeated load": Range(33, 260),
    "atomic": Range(300, 1000),  # with a fence before and after
    "barrier": Range(20, 50),
}


@dataclass(frozen=True)
class Target:
    """A target with its head, on some GPUs; all matrices in bfloat16.

    Attributes:
        name: model and devices, in words.
        device: one of the GPUs.
        devices: GPUs among which every matrix is divided.
        layers: layers of the target.
        width: width k of its features.
        parameters: parameters that a pass of the target reads, the embedding table left out.
        head_parameters: those that a pass of the head reads, its FC left out.
        cache_bytes: bytes of the KV cache for a token.
    """

    name: str
    device: Device
    devices: int
    layers: int
    width: int
    parameters: float
    head_parameters: float
    cache_bytes: float


def _decoder(width: int, inner: int, key_width: int, inputs: int) -> int:
    """Return the parameters of a decoder layer: q, k, v, o and SwiGLU; k and v are narrower."""
    return inputs * (width + 2 * key_width) + width * width + 3 * width * inner


def _target(name: str, device: Device, devices: int, sizes: tuple[int, int, int, int]) -> Target:
    layers, width, inner, vocabulary = sizes
    key_width, draft_vocabulary = 1024, 32_000
    return Target(
        name,
        device,
        devices,
        layers,
        width,
        layers * _decoder(width, inner, key_width, width) + vocabulary * width,
        _decoder(width, inner, key_width, 2 * width) + draft_vocabulary * width,
        2.0 * 2 * key_width * layers,
    )


#: Layers, width, width of the SwiGLU block and vocabulary of Llama 3.1, from the configuration of
#: the published models.
_LLAMA_8B, _LLAMA_70B = (32, 4096, 14_336, 128_256), (80, 8192, 28_672, 128_256)
TARGETS = {
    "8b-h100": _target("Llama-3.1-8B on one H100", DEVICES[0], 1, _LLAMA_8B),
    "70b-4xh100": _target("Llama-3.1-70B on four H100", DEVICES[0], 4, _LLAMA_70B),
}
#: Kernels of a layer in an engine that fuses what is usual, and of the rest of a pass; assumed.
KERNELS_OF_LAYER, KERNELS_OF_PASS = 8, 4
#: Seconds of an all-reduce of some rows among the GPUs of a machine, two for each layer; assumed.
ALL_REDUCE = Range(6e-6, 12e-6)
#: Share of the tensor cores' arithmetic that a pass over few rows reaches; assumed.
ARITHMETIC_SHARE = Range(0.5, 0.8)

#: Published figures that the model is compared with, quoted from memory: neither paper nor page was
#: at hand to check them. Speed-ups over plain decoding and tokens per cycle of EAGLE-3's head for
#: Llama-3.1-8B-Instruct, temperature 0 (EAGLE-3, arXiv:2503.01840, table 1).
PUBLISHED_EAGLE3 = {
    "chat (MT-bench)": (4.40, 6.13),
    "code (HumanEval)": (4.85, 6.74),
    "arithmetic (GSM8K)": (4.48, 6.23),
    "summaries (CNN/DM)": (3.65, 5.34),
    "mean of five sets": (4.44, 6.23),
}
#: Tokens a second of the same model in SGLang on one H100, plainly (SGLang's documentation,
#: speculative decoding).
PUBLISHED_PLAIN = 158.34
