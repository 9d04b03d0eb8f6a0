"""All matrix products of a pass, in the blocks of the GGUF file and in torch's quantised kernels.

    python benchmarks/bench_block_products.py [--repeats 15] [--rows 1,4,8,16]

One process, all runners in turn, medians, the shapes of the packaged model: four products a layer
and the output layer. torch's kernels get weights in the formats that they read.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Annotated

import gguf
import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from eaglerl._ext import C
from eaglerl.eagle3.layers.linear import PackedLinear
from eaglerl.evaluation.running.processor import describe_machine

LAYERS = 30
SHAPES = ((960, 576), (576, 576), (3072, 576), (576, 1536))
HEAD = (49152, 576)
GROUP = 32

Product = Callable[[torch.Tensor], object]


def weight(shape: tuple[int, int]) -> torch.Tensor:
    """Return random weights."""
    return torch.randn(shape) * shape[1] ** -0.5


def block_product(kind: str, activations: str) -> Callable[[tuple[int, int]], Product]:
    """Return a maker of our products; the output layer is Q8_0, as in the packaged file."""

    def make(shape: tuple[int, int]) -> Product:
        kind_here = gguf.GGMLQuantizationType["Q8_0" if shape == HEAD else kind]
        file = gguf.quants.quantize(weight(shape).numpy(), kind_here)
        matrix = C.BlockMatrix(int(kind_here), *shape, np.ascontiguousarray(file), None, 2)

        def run(x: torch.Tensor) -> torch.Tensor:
            out = torch.empty(len(x), shape[0])
            threads = torch.get_num_threads()
            matrix.multiply(x.data_ptr(), out.data_ptr(), len(x), activations, threads)
            return out

        return run

    return make


def packed_float32(shape: tuple[int, int]) -> Product:
    """Return oneDNN's product of packed float32 weights."""
    return PackedLinear(weight(shape), None, dtype="float32")


def dynamic_int8(shape: tuple[int, int]) -> Product:
    """Return torch's dynamically quantised product, one scale for all rows."""
    linear = torch.nn.Linear(shape[1], shape[0], bias=False)
    return torch.ao.quantization.quantize_dynamic(
        torch.nn.Sequential(linear), {torch.nn.Linear}, dtype=torch.qint8
    )


def weight_int8(shape: tuple[int, int]) -> Product:
    """Return `_weight_int8pack_mm` with bfloat16 activations, one scale for an output."""
    codes = torch.randint(-127, 128, shape, dtype=torch.int8)
    scales = torch.rand(shape[0]).bfloat16()
    return lambda x: torch._weight_int8pack_mm(x.bfloat16(), codes, scales)


def weight_int4(shape: tuple[int, int]) -> Product:
    """Return `_weight_int4pack_mm_for_cpu` with bfloat16 activations, groups of 32."""
    codes = torch.randint(0, 16, shape, dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales = torch.rand(shape[1] // GROUP, shape[0], 2).bfloat16()
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x.bfloat16(), packed, GROUP, scales)


def onednn_int8(shape: tuple[int, int]) -> Product:
    """Return oneDNN's product of 8-bit rows and weights; one scale for all rows."""
    codes = torch.randint(-127, 128, shape, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(codes, None)
    scales, zeros = torch.rand(shape[0]), torch.zeros(shape[0], dtype=torch.int32)

    def run(x: torch.Tensor) -> torch.Tensor:
        scale = float(x.abs().max()) / 127
        rows = (x / scale).round().clamp(-128, 127).to(torch.int8)
        return torch.ops.onednn.qlinear_pointwise(
            rows, scale, 0, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )

    return run


RUNNERS: dict[str, Callable[[tuple[int, int]], Product]] = {
    "eaglerl Q4_1, float32 rows": block_product("Q4_1", "float32"),
    "eaglerl Q4_1, 8-bit rows": block_product("Q4_1", "int8"),
    "eaglerl Q8_0, 8-bit rows": block_product("Q8_0", "int8"),
    "torch float32, packed by oneDNN": packed_float32,
    "torch quantize_dynamic": dynamic_int8,
    "torch _weight_int8pack_mm": weight_int8,
    "torch _weight_int4pack_mm_for_cpu": weight_int4,
    "torch onednn.qlinear_pointwise": onednn_int8,
}


def measure(products: list[Product], rows: int) -> float:
    """Return the milliseconds of one pass through the products."""
    inputs = {size: torch.randn(rows, size) for size in {shape[1] for shape in (*SHAPES, HEAD)}}
    sizes = [shape[1] for shape in SHAPES] * LAYERS + [HEAD[1]]
    started = time.perf_counter()
    for product, size in zip(products, sizes, strict=True):
        product(inputs[size])
    return 1e3 * (time.perf_counter() - started)


def main(
    rows: Annotated[str, typer.Option(help="Numbers of rows.")] = "1,4,8,16",
    repeats: int = 15,
) -> None:
    """Print the medians."""
    counts = [int(part) for part in rows.split(",")]
    with torch.inference_mode():
        made = {
            name: [make(shape) for _ in range(LAYERS) for shape in SHAPES] + [make(HEAD)]
            for name, make in RUNNERS.items()
        }
        times: dict[tuple[str, int], list[float]] = {}
        for repeat in range(repeats + 1):
            for count in counts:
                for name, products in made.items():
                    taken = measure(products, count)
                    if repeat:
                        times.setdefault((name, count), []).append(taken)
    table = Table(title=f"All products of a pass, ms ({describe_machine()})")
    table.add_column("rows")
    for count in counts:
        table.add_column(str(count), justify="right")
    for name in made:
        cells = [f"{statistics.median(times[name, count]):.2f}" for count in counts]
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
