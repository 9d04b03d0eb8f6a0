"""Calls of the extension's own functions and classes, with real memory and any numbers.

Native code cannot check what is behind an address, so sizes are either right or impossible:
negative, or larger than all memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from acceptances import native_accept, native_extend
from arguments import Source
from memory import Memory, Step, drive_calls, spoil_numbers, spoiled_array
from scorers import (
    learning_cycle,
    online_acceptance,
    online_batch,
    online_cost,
    online_cycle,
)
from selections import native_layout, native_select

from eaglerl._ext import C


def _rms_norm(source: Source, memory: Memory) -> Step:
    index = memory.int64(4) if source.random() < 0.5 else 0
    return C.rms_norm, [memory(32), 8, 4, index, memory(8), memory(32), 8, 4, 8, 1e-5, 1]


def _silu_mul(source: Source, memory: Memory) -> Step:
    return C.silu_mul, [memory(64), 16, memory(32), 4, 8, source.choice((1, 2))]


def _cache_dtype(source: Source) -> tuple[int, torch.dtype]:
    """Return a dtype of a KV cache: its number in native code, and torch's."""
    name, number = source.choice(tuple(C.cache_dtypes.items()))
    return number, getattr(torch, name)


def _cached_attention(source: Source, memory: Memory) -> Step:
    rows, block = 3, source.choice((0, 3))
    number, dtype = _cache_dtype(source)
    return C.cached_attention, [
        memory(rows * 32), 32, memory(20), memory(20), 5, memory.int32(rows), memory.int32(rows),
        memory.int32(rows), memory(80, dtype), memory(80, dtype), 1, 80, 10, number,
        memory.int32(rows), memory.int64(rows), 1, block, memory(8), memory(8), 1e-6, 0.3,
        memory(rows * 16), 16, rows, 2, 1, 8, source.choice((1, 2)),
    ]  # fmt: skip


def _move_rows(source: Source, memory: Memory) -> Step:
    rows = torch.tensor([2, 3, 5], dtype=torch.int32)
    memory.kept.append(rows)
    return C.move_rows, [memory(160), 2, 160, 2, 80, 8, rows.data_ptr(), 3, 1, 10]


def _accept_path(source: Source, memory: Memory) -> Step:
    return C.accept_path, [
        memory.int32(5), memory.int64(5), memory.int64(5), 5, memory.int32(5)
    ]  # fmt: skip


def _greedy_paths(source: Source, memory: Memory) -> Step:
    trees = [(memory.int32(3), memory.int64(3), 3, 0), (memory.int32(2), memory.int64(2), 2, 3)]
    return C.greedy_paths, [memory(40), 5, 8, 8, trees, source.choice((1, 2))]


def _tree_structure(source: Source, memory: Memory) -> Step:
    return C.tree_structure, [memory.int32(70), 70, memory.int32(70), memory.int64(140), 2]


def _action_cache_step(source: Source, memory: Memory) -> Step:
    mode, columns = source.randrange(3), source.choice((3, 4))
    return C.action_cache_step, [
        memory(24), memory.int32(4 * columns), memory(40), memory.int32(80), memory(100),
        memory.int32(75), memory.int64(1) if source.random() < 0.3 else 0, memory.int32(2),
        memory.int32(2 * columns), 1, 4, columns, 3, 5, 20, mode, source.choice((0.0, 1.0)), 1, 2,
        0,
    ]  # fmt: skip


def _check_range(source: Source, memory: Memory) -> Step:
    return C.check_range, ["rows", memory.int64(4), 4, 5]


def _cycle(threads: int) -> None:
    C.begin_cycle(threads)
    C.end_cycle()


def _begin_cycle(source: Source, memory: Memory) -> Step:
    return _cycle, [source.choice((1, 2))]


def _philox(source: Source, memory: Memory) -> Step:
    return C.philox4x32_10, [[1, 2, 3, 4], [5, 6]]


def _read_seconds(source: Source, memory: Memory) -> Step:
    return C.read_seconds, [memory(4096), 16384, source.choice((1, 2))]


def _set_isa(source: Source, memory: Memory) -> Step:
    names = (*C.available_isas(), "", "sse9", "avx2\0", "x" * 99, b"avx2")
    return C.set_isa, [source.choice(names)]


def _no_arguments(name: str) -> Callable[[Source, Memory], Step]:
    return lambda source, memory: (getattr(C, name), [])


def policy_arguments(source: Source, memory: Memory, fc: bool) -> list[Any]:
    """Return the arguments of a policy of 6 reduced or 9 joined features, with horizon 2."""
    first = 6 if fc or source.random() < 0.5 else 9
    kind = source.randrange(3)
    matrices = [memory(first * 5), memory(5 * 8)]
    return [
        matrices, [memory(5), memory(8)], [first, 5, 8], memory(54) if fc else 0,
        memory(6) if fc else 0, 9, kind, source.choice((1, 2, 3)), memory(9),
        source.choice((0, 1, 3)), 1e-6, first == 9 or fc, memory.int32(16), 4,
        source.choice((3, 4)), 2, 1,
    ]  # fmt: skip


def _policy(source: Source, memory: Memory) -> Step:
    arguments = policy_arguments(source, memory, source.random() < 0.5)
    if source.random() < 0.3:
        place = source.randrange(3)
        arguments[place] = spoil_numbers(arguments[place], source)[: source.choice((1, 3))]
    return C.Policy, arguments


def _policy_encoder(source: Source, memory: Memory) -> Step:
    fc = source.random() < 0.5
    arguments = policy_arguments(source, memory, fc)
    encoder = C.PolicyEncoder(C.Policy(*arguments), source.choice((1, 2)))
    width = arguments[2][0]
    steps = [
        (encoder.set_cache, [
            source.randrange(3), memory.int32(48), 3, memory(3 * 64),
            source.choice((6, 9, 64)), memory.int32(30),
        ]),
        (encoder.set_outputs, [
            memory(18) if fc and source.random() < 0.5 else 0, memory(24), memory.int32(3),
            memory.int32(12), 3, 3,
        ]),
        (encoder.set_draw, [source.choice((0.0, 0.5)), 7]),
        (encoder.set_inputs, [memory(27), 0, 0, 9, 0, 0, 0, 3]
         if (width == 6 and not fc) or source.random() < 0.5
         else [memory(9), memory(9), memory(9), 3, 3, 3, 0, 3]),
        (encoder.run, [memory.int64(3) if source.random() < 0.5 else 0, 3, memory.int64(3)
                       if source.random() < 0.5 else 0, source.choice((0, 1, 3)), 0, 5]),
    ]  # fmt: skip
    chosen = steps if source.random() < 0.7 else source.choices(steps, k=7)

    def drive(*_: Any) -> None:
        drive_calls([partial(m, *spoil_numbers(v, source)) for m, v in [*chosen, steps[-1]]])

    return drive, []


def _tensor_guard(source: Source, memory: Memory) -> Step:
    tensors = [torch.zeros(4), torch.zeros(()), torch.zeros(0, 3), torch.zeros(1, 1, 1, 1, 1)]
    tensors += [torch.zeros(2, device="meta"), torch.zeros(2).to_sparse(), 7, None, torch.Tensor]
    chosen = source.sample(tensors, source.randrange(4))
    return lambda *a: C.TensorGuard(*a).unchanged(), [chosen, source.random() < 0.7]


def _storage_holds(source: Source, memory: Memory) -> Step:
    whole = source.floats(4, 3)
    values = [whole, whole.t(), whole.to("meta"), whole.to_sparse(), whole[:0], 7, None, memory]
    return C.storage_holds, [source.choice(values)]


def _draft_tree_builder(source: Source, memory: Memory) -> Step:
    builder = C.DraftTreeBuilder()
    logits = source.floats(3, 40)
    memory.kept.append(logits)
    tree = [
        memory.int64(40), memory.int32(40), memory.int32(40), memory.int64(40), 1, memory(40)
    ]  # fmt: skip
    methods = {
        "begin": [5, source.choice((1, 3))],
        "first": [logits.data_ptr(), 40, memory.int64(40) if source.random() < 0.5 else 0],
        "expand": [logits.data_ptr(), 40, 40, 0, 1],
        "frontier": [memory.int64(3), memory.int64(3), memory.int64(30), 10],
        "finish": [source.choice((1, 4, 9)), *tree],
        "select": [source.sample(range(12), source.randrange(4)), [1, 2, 3][: source.randrange(4)]],
        "finish_selected": tree,
        "lookup_nodes": [[1, 2, 3], source.choice((0, 2, 9)), memory.int64(9)],
        "scores": [memory(1000)],
        "progress": [[1, 2, 3][: source.randrange(4)], source.choice((0, 2, 9))],
    }

    def drive(*_: Any) -> None:
        begin = ["begin", "first"] if source.random() < 0.8 else []
        names = [*begin, *source.choices(list(methods), k=8)]
        drive_calls([
            partial(getattr(builder, name), *spoil_numbers(methods[name], source))
            for name in names
        ])  # fmt: skip

    return drive, []


def _make_block_matrix(source: Source, outputs: int, inputs: int) -> Any:
    # Q4_1 and Q8_0: blocks of 32 inputs take 20 and 34 bytes.
    kind, size = source.choice(((3, 20), (8, 34)))
    return C.BlockMatrix(kind, outputs, inputs, np.zeros((outputs, inputs // 32 * size), np.uint8),
                         None, 1)  # fmt: skip


def _block_matrix(source: Source, memory: Memory) -> Step:
    x, out, ids = memory(9 * 64), memory(9 * 20), memory.int64(9)

    def drive(*_: Any) -> None:
        file = spoiled_array(np.zeros((20, 40), np.uint8), source, share=0.3)
        rows = spoiled_array(np.arange(20), source, share=0.3)
        arguments = [3, 20, 64, file, rows, 1]
        if source.random() < 0.3:
            arguments = spoil_numbers(arguments[:3], source) + arguments[3:]
        matrix = C.BlockMatrix(*arguments)
        assert matrix.shape == (20, 64)
        assert matrix.bytes > 0
        activations = source.choice(("float32", "int8", "bfloat16", ""))
        drive_calls([
            partial(matrix.dequantise, *spoil_numbers([3, 20], source)),
            partial(matrix.gather, *spoil_numbers([ids, 9, x, 2], source)),
            partial(matrix.multiply, *spoil_numbers([x, out, 9, activations, 2], source)),
        ])  # fmt: skip

    return drive, []


def _block_decoder(source: Source, memory: Memory) -> Step:
    # Two layers of 32 channels, with 2 query heads and 1 key head of 16, and 40 tokens.
    hidden, rows, layers, capacity, block = 32, 3, 2, 10, source.choice((0, 3))
    number, dtype = _cache_dtype(source)
    run = [
        memory.int64(rows), rows, memory(40), memory(40), 5, memory.int32(rows),
        memory.int32(rows), memory.int32(rows) if source.random() < 0.5 else 0,
        memory(layers * 2 * capacity * 16, dtype), 1, layers * 2 * capacity * 16, 2 * capacity * 16,
        capacity * 16, capacity, number, memory.int32(rows), memory.int64(rows), 1, block,
        source.choice(([], [0, 1], [7])), memory(rows * 2 * hidden), memory(rows * hidden),
        memory(rows * 40), source.choice((0, 1, rows)), source.choice((1, 2)),
    ]  # fmt: skip

    def matrix(outputs: int, inputs: int) -> Any:
        if source.random() < 0.01:
            return source.choice((None, _make_block_matrix(source, outputs + 1, inputs), 7))
        return _make_block_matrix(source, outputs, inputs)

    def norm(size: int) -> Any:
        return spoiled_array(np.ones(size, np.float32), source, share=0.01)

    def drive(*_: Any) -> None:
        layer = [
            norm(hidden), norm(hidden), source.choice((None, norm(16))), None,
            ([matrix(32, hidden), matrix(32, hidden)], source.choice((None, norm(64)))),
            ([matrix(hidden, 32)], source.choice((None, norm(hidden)))),
            ([matrix(96, hidden), matrix(96, hidden)], None), ([matrix(hidden, 96)], None),
        ]  # fmt: skip
        sizes = [96, 2, 1, 16, 1e-5, 0.25, source.random() < 0.5]
        if source.random() < 0.2:
            sizes = spoil_numbers(sizes, source)
        table = matrix(40, hidden)
        decoder = C.BlockDecoder(
            *sizes, table, [tuple(layer)] * layers, norm(hidden), ([table], None)
        )  # fmt: skip
        # Counts within the memory that is there are the caller's word.
        drive_calls([partial(decoder.run, *run), partial(decoder.run, *spoil_numbers(run, source))])

    return drive, []


def _ngram_index(source: Source, memory: Memory) -> Step:
    def drive(*numbers: Any) -> None:
        index = C.NgramIndex(*numbers)
        calls: list[Callable[[], Any]] = [index.token_ids, lambda: index.length]
        for _ in range(6):
            tokens = [source.randrange(4) for _ in range(source.randrange(30))]
            calls += [
                partial(index.extend, spoil_numbers(tokens, source)),
                partial(index.propose, *spoil_numbers([source.randrange(9)], source)),
            ]
        drive_calls(calls)

    return drive, [source.choice((2, 3, 16, 64))]


NATIVES: dict[str, Callable[[Source, Memory], Step]] = {
    "rms_norm": _rms_norm,
    "silu_mul": _silu_mul,
    "cached_attention": _cached_attention,
    "move_rows": _move_rows,
    "accept_path": _accept_path,
    "greedy_paths": _greedy_paths,
    "tree_structure": _tree_structure,
    "action_cache_step": _action_cache_step,
    "accept_draft": native_accept,
    "extend_ngrams": native_extend,
    "select_draft_nodes": native_select,
    "selection_rule_layout": native_layout,
    "selection_tables": _no_arguments("selection_tables"),
    "check_range": _check_range,
    "philox4x32_10": _philox,
    "read_seconds": _read_seconds,
    "set_isa": _set_isa,
    "cpu_isa": _no_arguments("cpu_isa"),
    "available_isas": _no_arguments("available_isas"),
    "threading_backend": _no_arguments("threading_backend"),
    "begin_cycle": _begin_cycle,
    "release_pool": _no_arguments("release_pool"),
    "end_cycle": _no_arguments("end_cycle"),
    "cycle_threads": _no_arguments("cycle_threads"),
    "Policy": _policy,
    "PolicyEncoder": _policy_encoder,
    "TensorGuard": _tensor_guard,
    "storage_holds": _storage_holds,
    "DraftTreeBuilder": _draft_tree_builder,
    "OnlineAcceptance": online_acceptance,
    "OnlineBatch": online_batch,
    "OnlineCost": online_cost,
    "make_learning_cycle": learning_cycle,
    "OnlineCycle": online_cycle,
    "NgramIndex": _ngram_index,
    "block_formats": _no_arguments("block_formats"),
    "BlockMatrix": _block_matrix,
    "BlockDecoder": _block_decoder,
}


def run_native(name: str, source: Source) -> str:
    """Run a call of the extension and return "ok"."""
    memory = Memory()
    function, arguments = NATIVES[name](source, memory)
    if isinstance(getattr(C, name), type) and source.random() < 0.05:
        kind = getattr(C, name)
        empty = kind.__new__(kind)
        methods = [method for method in dir(kind) if not method.startswith("_")]
        for method in methods:
            value = getattr(empty, method)
            if callable(value):
                value(*arguments)
        return "ok"
    function(*spoil_numbers(arguments, source))
    return "ok"
