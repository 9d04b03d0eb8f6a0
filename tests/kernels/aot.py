"""Compiles launches ahead of time, for devices that need not be there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from eaglerl.kernels._launch import Launch

_TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}
_ALIGNED = [["tt.divisibility", 16]]

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass(frozen=True)
class Signature:
    """What Triton's own launch would compile an argument as."""

    types: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], list[list[Any]]]


def signature_of(launch: Launch) -> Signature:
    """Return the types, constants and alignments of a launch's arguments."""
    kernel = launch.kernel
    types: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    plain = set(kernel.params[i].name for i in range(len(kernel.params)))
    assert plain == {*launch.arguments, "PLAN"}
    for i, parameter in enumerate(kernel.params):
        value = launch.plan if parameter.is_constexpr else launch.arguments[parameter.name]
        specialises = not parameter.is_constexpr and not parameter.do_not_specialize
        types[parameter.name] = "constexpr" if parameter.is_constexpr else _type_of(value)
        if parameter.is_constexpr:
            constants[(i,)] = value
            continue
        for path, leaf in _leaves(value, (i,)):
            if leaf is None or (isinstance(leaf, int) and leaf == 1 and specialises):
                constants[path] = leaf
            elif specialises and _is_aligned(leaf):
                attributes[path] = _ALIGNED
    return Signature(types, constants, attributes)


def _leaves(value: Any, path: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Any]]:
    if isinstance(value, tuple):
        for i, part in enumerate(value):
            yield from _leaves(part, (*path, i))
    else:
        yield path, value


def _type_of(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_type_of(part) for part in value)
    if value is None:
        return "constexpr"
    if isinstance(value, Tensor):
        return _TYPES[value.dtype]
    return "i32" if isinstance(value, int) else "fp32"


def _is_aligned(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.storage_offset() * value.itemsize % 16 == 0
    return isinstance(value, int) and value % 16 == 0


def compile_launch(launch: Launch, target: GPUTarget) -> Any:
    """Return the compiled kernel of a launch."""
    signature = signature_of(launch)
    source = ASTSource(launch.kernel, signature.types, signature.constants, signature.attributes)
    return triton.compile(
        source, target=target, options=launch.options(nvidia=target.backend == "cuda")
    )


def resource_usage(cubin: bytes, folder: Path) -> dict[str, int]:
    """REG, STACK, SHARED, LOCAL of the only function of a cubin, by Triton's own cuobjdump."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    tool = triton.knobs.nvidia.cuobjdump.path
    output = subprocess.run(
        [tool, "--dump-resource-usage", path], check=True, capture_output=True, text=True
    ).stdout
    functions = re.findall(r"Function (\S+):\s*\n\s*(.*)", output)
    assert len(functions) == 1, output
    return {name: int(count) for name, count in re.findall(r"([A-Z]+):(\d+)", functions[0][1])}


def disassembly(cubin: bytes, folder: Path) -> str:
    """Return the SASS of a cubin."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    tool = triton.knobs.nvidia.nvdisasm.path
    return subprocess.run([tool, path], check=True, capture_output=True, text=True).stdout
