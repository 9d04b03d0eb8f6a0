"""Description of the machine that a comparison ran on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from eaglerl._ext import build_info


def processor_name() -> str:
    """Return the model name of the processor as the operating system reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_machine() -> str:
    """Return one line with the processor, threads, instruction set and version of torch."""
    return (
        f"{processor_name()}, {torch.get_num_threads()} threads, {build_info()['isa']}, "
        f"torch {torch.__version__}"
    )
