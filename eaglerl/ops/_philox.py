"""Philox-4x32-10 in plain torch (Salmon et al., SC 2011), as in csrc/policy/philox.h."""

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox4x32(counter: list[Tensor], key: list[int]) -> list[Tensor]:
    """Run ten rounds of Philox-4x32.

    Args:
        counter: four int64 tensors of one shape, values in 0..2**32 - 1.
        key: two words.

    Returns:
        Four int64 tensors of the same shape and range.
    """
    words = [word.clone() for word in counter]
    key = list(key)
    for _ in range(10):
        # A 64-bit product overflows int64, so it is composed from halves of the multiplier.
        first, second = (
            _multiply(words[place], factor)
            for place, factor in zip((0, 2), _MULTIPLIERS, strict=True)
        )
        words = [second[0] ^ words[1] ^ key[0], second[1], first[0] ^ words[3] ^ key[1], first[1]]
        key = [(word + step) & _WORD for word, step in zip(key, _INCREMENTS, strict=True)]
    return words


def philox_uniform(seed: int, offset: int, sequences: int, windows: int) -> Tensor:
    """Return uniform draws of 24 bits in [0, 1): float64 (sequences, windows) on the CPU."""
    shape = (sequences, windows)
    counter = [
        torch.full(shape, offset & _WORD),
        torch.full(shape, offset >> 32),
        torch.arange(sequences)[:, None].expand(shape),
        torch.arange(windows).expand(shape),
    ]
    bits = philox4x32(counter, [seed & _WORD, seed >> 32])[0]
    return (bits >> 8).double() * 2.0**-24


def _multiply(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Return the high and low 32 bits of the product of two 32-bit words."""
    upper, lower = word * (factor >> 16), word * (factor & 0xFFFF)
    total = lower + ((upper & 0xFFFF) << 16)
    return (upper >> 16) + (total >> 32), total & _WORD
