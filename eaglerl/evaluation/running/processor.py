"""What a figure was measured on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from eaglerl._ext import build_info


def processor_name() -> str:
    """Model name of the processor, as the operating system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_machine() -> str:
    """One line: processor, threads, instruction set, versions."""
    return (
        f"{processor_name()}, {torch.get_num_threads()} threads, {build_info()['isa']}, "
        f"torch {torch.__version__}"
    )
