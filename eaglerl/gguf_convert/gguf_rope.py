"""RoPE of a GGUF file as transformers' parameters: its base, scaling and frequency divisors.

The scaling is in the metadata (``ARCH.rope.scaling.*``) or in the tensor ``rope_freqs.weight``,
which has a divisor for every frequency. llama.cpp's converter writes Llama 3's scaling in the
second way, without the four numbers that it computed the divisors from. They are recovered here.
"""

from __future__ import annotations

from math import pi
from typing import Any

import numpy as np

from eaglerl.gguf_convert.gguf_file import GGUFFile

FREQUENCIES = "rope_freqs.weight"
_DEFAULT_BASE = 10000.0
# Divisors are stored in fp32, so those of the right parameters differ by rounding alone.
_TOLERANCE = 1e-5
#: Llama 3's parameters, for heads with too few frequencies for the divisors to determine them.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_CONTEXT = 1.0, 4.0, 8192


def read_rope(file: GGUFFile, architecture: str, head_dim: int, context: int) -> dict[str, Any]:
    """Return ``rope_parameters`` as a config of transformers has them.

    Args:
        file: the file.
        architecture: what its keys begin with.
        head_dim: width of a head, all of which is rotated.
        context: its context length.

    Raises:
        ValueError: the file asks for a scaling that transformers has no equal of.
    """
    base = file.number(f"{architecture}.rope.freq_base", _DEFAULT_BASE)
    scaling = _read_scaling(file, f"{architecture}.rope.scaling", architecture, context)
    if FREQUENCIES in file.tensors:
        divisors = _read_divisors(file, head_dim)
        if scaling["rope_type"] == "yarn":
            raise file.error(f"{FREQUENCIES} together with RoPE scaling 'yarn' is not supported")
        original = file.integer(f"{architecture}.rope.scaling.original_context_length", None)
        scaling = parameters_of(
            divisors * scaling.get("factor", 1.0), base, context, original or _LLAMA3_CONTEXT
        )
    return {**scaling, "rope_theta": base}


def parameters_of(
    divisors: np.ndarray, base: float, context: int, original: int = _LLAMA3_CONTEXT
) -> dict[str, Any]:
    """Return the RoPE scaling that divides the frequencies by given numbers.

    "llama3" where its formula gives them, otherwise "longrope", which may divide by anything.

    Args:
        divisors: (D / 2,) float64, positive.
        base: theta.
        context: the model's context length.
        original: the context length to take where the divisors allow several.
    """
    if np.allclose(divisors, divisors[0], rtol=_TOLERANCE, atol=0):
        factor = float(divisors.mean())
        if abs(factor - 1) < _TOLERANCE:
            return {"rope_type": "default"}
        return {"rope_type": "linear", "factor": _rounded(factor)}
    half = len(divisors)
    wavelengths = 2 * pi * base ** (np.arange(half) / half)
    for candidate in _llama3_candidates(divisors, wavelengths, original):
        found = llama3_divisors(wavelengths, **candidate)
        if np.allclose(found, divisors, rtol=_TOLERANCE, atol=0):
            names = {"original": "original_max_position_embeddings", "low": "low_freq_factor",
                     "high": "high_freq_factor", "factor": "factor"}  # fmt: skip
            return {
                "rope_type": "llama3",
                **{names[name]: value for name, value in candidate.items()},
            }
    return {
        "rope_type": "longrope",
        "short_factor": divisors.tolist(),
        "long_factor": divisors.tolist(),
        "attention_factor": 1.0,
        "factor": 1.0,
        "original_max_position_embeddings": context,
    }


def llama3_divisors(
    wavelengths: np.ndarray, factor: float, low: float, high: float, original: float
) -> np.ndarray:
    """Return what Llama 3's scaling divides the frequencies by: 1, `factor`, or in between.

    Args:
        wavelengths: (D / 2,) float64, in tokens.
        factor: divisor of the low frequencies.
        low: wavelengths above ``original / low`` are divided by all of `factor`.
        high: those below ``original / high`` by 1.
        original: context length before it was scaled.
    """
    smooth = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    return 1 / ((1 - smooth) / factor + smooth)


def _llama3_candidates(
    divisors: np.ndarray, wavelengths: np.ndarray, original: int
) -> list[dict[str, Any]]:
    factor = float(divisors[-1])
    if factor <= 1:
        return []
    factor = _rounded(factor)
    usual = {"factor": factor, "low": _LLAMA3_LOW, "high": _LLAMA3_HIGH}
    candidates = [{**usual, "original": original}, {**usual, "original": _LLAMA3_CONTEXT}]
    smooth = (1 / divisors - 1 / factor) / (1 - 1 / factor)
    between = (smooth > _TOLERANCE) & (smooth < 1 - _TOLERANCE)
    if between.sum() >= 2:
        # In between, smooth = slope / wavelength + offset: a line whose two numbers determine low
        # and high for any original length, which is therefore free.
        inverse = 1 / wavelengths[between]
        slope, offset = np.polyfit(inverse, smooth[between], 1)
        if slope > 0 and offset < 0:
            width = original / slope
            low, high = -offset * width, (1 - offset) * width
            candidates.append(
                {"factor": factor, "low": _rounded(low), "high": _rounded(high),
                 "original": original}
            )  # fmt: skip
    return candidates


def _rounded(value: float) -> float:
    """Undo the rounding to fp32 where a value with three decimals is close."""
    near = round(value, 3)
    return near if abs(near - value) <= _TOLERANCE * abs(value) else float(value)


def _read_divisors(file: GGUFFile, head_dim: int) -> np.ndarray:
    divisors = file.expand(FREQUENCIES).astype(np.float64).reshape(-1)
    if len(divisors) != head_dim // 2 or (divisors <= 0).any():
        raise file.error(
            f"{FREQUENCIES} must hold {head_dim // 2} numbers above 0, one for each frequency, got "
            f"{len(divisors)} from {divisors.min():.4g} on"
        )
    return divisors


def _read_scaling(file: GGUFFile, prefix: str, architecture: str, context: int) -> dict[str, Any]:
    factor = file.number(f"{prefix}.factor", None)
    # The name of the factor in older converters.
    if factor is None:
        factor = file.number(f"{architecture}.rope.scale_linear", None)
    kind = file.text(f"{prefix}.type", "none" if factor is None else "linear")
    if kind == "none" or (kind == "linear" and factor in (None, 1.0)):
        return {"rope_type": "default"}
    if kind not in ("linear", "yarn"):
        raise file.error(f"RoPE scaling {kind!r} ({prefix}.type) is not supported")
    if factor is None:
        raise file.error(f"RoPE scaling {kind!r} needs {prefix}.factor, which is missing")
    _refuse_unless_neutral(file, prefix)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    parameters = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": file.integer(
            f"{prefix}.original_context_length", context
        ),
    }
    for own, name in (("beta_fast", "beta_fast"), ("beta_slow", "beta_slow"),
                      ("attn_factor", "attention_factor")):  # fmt: skip
        value = file.number(f"{prefix}.yarn_{own}", None)
        if value is not None:
            parameters[name] = value
    return parameters


def _refuse_unless_neutral(file: GGUFFile, prefix: str) -> None:
    """Refuse factors that llama.cpp applies and transformers does not have."""
    for name, neutral in (("attn_factor", 1.0), ("alpha", 0.0), ("yarn_ext_factor", 1.0),
                          ("yarn_log_multiplier", 0.0)):  # fmt: skip
        value = file.metadata.get(f"{prefix}.{name}", neutral)
        if value != neutral:
            raise file.error(f"{prefix}.{name} = {value!r} is not supported; only {neutral} is")
