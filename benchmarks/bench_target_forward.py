"""The target's forward pass in every precision, against transformers and its own products.

    python benchmarks/bench_target_forward.py [--context 512] [--repeats 30]

One process, all runners in turn, medians. The products are those of the float32 forward pass, of a
second copy of its weights, in the same order and on inputs of the same shape, with nothing in
between.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import DynamicCache, PreTrainedModel

from eaglerl.eagle3 import load_target
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.target.block_weights import DecoderWeights
from eaglerl.eagle3.target.packed_target import pack_decoder_weights, packed_target
from eaglerl.eagle3.target.target_files import load_transformers_model
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.eagle3.target.transformers_target import cache_argument
from eaglerl.evaluation.running.processor import describe_machine
from eaglerl.prepare import prepare_model

ROWS = (1, 4, 8, 16, 32, 60)
#: Bound on forward / products for every number of rows, and on forward / transformers at 8 rows.
PRODUCT_BOUNDS = {1: 1.35, 4: 1.35, 8: 1.35, 16: 1.35, 32: 1.5, 60: 1.5}
EAGER_BOUND_AT_8 = 0.55


def own_forward(target: TargetModel, context: int, rows: int) -> Callable[[], object]:
    """Return a function that verifies `rows` consecutive tokens behind `context` committed ones."""
    cache = target.new_cache(context + rows)
    token_ids = torch.randint(3, target.vocab_size, (context + rows,))
    for start in range(0, context, 256):
        chunk = token_ids[start : min(start + 256, context)]
        target.forward(RowBatch.causal(chunk, start), cache, "none")
    batch = RowBatch.causal(token_ids[context:], context)
    return lambda: target.forward(batch, cache)


def products_alone(weights: DecoderWeights, rows: int) -> Callable[[], object]:
    """Return the products of the same pass alone."""
    products = [
        product
        for layer in weights.layers
        for product in (layer.qkv, layer.out, layer.gate_up, layer.down)
    ]
    matrices = [matrix for product in (*products, weights.head) for matrix in product.matrices]
    inputs = {size: torch.randn(rows, size) for size in {m.shape[1] for m in matrices}}
    out = torch.empty(rows, max(matrix.shape[0] for matrix in matrices))
    threads = torch.get_num_threads()

    def run() -> None:
        for matrix in matrices:
            x = inputs[matrix.shape[1]]
            matrix.multiply(x.data_ptr(), out.data_ptr(), rows, "float32", threads)

    return run


def eager_forward(model: PreTrainedModel, context: int, rows: int) -> Callable[[], object]:
    """Return a function that runs transformers' forward of `rows` tokens behind `context`."""
    cache = DynamicCache(config=model.config)
    arguments = {cache_argument(model): cache}
    model(torch.randint(3, model.config.vocab_size, (1, context)), **arguments)
    token_ids = torch.randint(3, model.config.vocab_size, (1, rows))

    def run() -> None:
        model(token_ids, **arguments)
        cache.crop(-rows)

    return run


def medians(runners: list[Callable[[], object]], repeats: int) -> list[float]:
    """Return the median milliseconds of each runner, run in turn."""
    times: list[list[float]] = [[] for _ in runners]
    for repeat in range(repeats + 2):
        for runner, samples in zip(runners, times, strict=True):
            started = time.perf_counter()
            runner()
            if repeat >= 2:
                samples.append(1e3 * (time.perf_counter() - started))
    return [statistics.median(samples) for samples in times]


def main(
    context: int = 512,
    repeats: int = 30,
    model: Annotated[Path | None, typer.Option(help="Folder of the target.")] = None,
) -> None:
    """Print the table; exit with 1 if a bound is missed."""
    path = model or prepare_model()
    eager = load_transformers_model(path, torch.float32)
    table = Table(title=f"Forward pass of M rows, context {context}, ms ({describe_machine()})")
    for title in (
        "M",
        "float32 products",
        "float32",
        "native",
        "int8",
        "transformers",
        "float32/products",
        "float32/transformers",
    ):
        table.add_column(title, justify="right")
    missed = []
    with torch.inference_mode():
        target, weights = packed_target(eager), pack_decoder_weights(eager)
        native, int8 = (load_target(path, precision=name) for name in ("native", "int8"))
        for rows in ROWS:
            products, forward, blocks, bytes_, reference = medians(
                [
                    products_alone(weights, rows),
                    *(own_forward(one, context, rows) for one in (target, native, int8)),
                    eager_forward(eager, context, rows),
                ],
                repeats,
            )
            ratio, against_eager = forward / products, forward / reference
            if ratio > PRODUCT_BOUNDS[rows] or (rows == 8 and against_eager > EAGER_BOUND_AT_8):
                missed.append(rows)
            cells = (products, forward, blocks, bytes_, reference, ratio, against_eager)
            table.add_row(str(rows), *(f"{cell:.2f}" for cell in cells))
    console = Console()
    console.print(table)
    if missed:
        console.print(f"over the bound at M = {', '.join(map(str, missed))}")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
