"""Choice of the dtype in which matrix products run."""

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_dtype(name: str) -> torch.dtype:
    """Return the dtype for matrix products; weights and optimizer states stay fp32 in any case.

    Args:
        name: "float32", "bfloat16", or "auto": bfloat16 where the CPU multiplies it in hardware
            (AVX512-BF16 or AMX), which about doubles the speed, else float32.

    Raises:
        ValueError: the name is unknown.
    """
    if name == "auto":
        return torch.bfloat16 if _cpu_multiplies_bfloat16() else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype must be 'auto' or one of {list(DTYPES)}, got {name!r}")
    return DTYPES[name]


def _cpu_multiplies_bfloat16() -> bool:
    # These probes are private. Without them the dtype is float32: slower, but always correct.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
