"""Calls of the public operations and of torch's operators, right ones and spoiled ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from acceptances import accept_draft, extend_ngrams, operator_accept, operator_extend
from arguments import Source, spoil, spoil_some
from selections import operator_select, select_draft_nodes
from torch import Tensor

from eaglerl import ops
from eaglerl.ops._encode_library import flatten

Call = tuple[Callable[..., Any], dict[str, Any], Callable[[], Any] | None]


def make_weights(source: Source, **fields: Any) -> ops.PolicyWeights:
    k, width, hidden = source.choice((1, 5, 16)), source.choice((1, 7, 17)), source.choice((1, 9))
    actions, horizon = source.choice((1, 2, 11)), fields.pop("horizon", 1)
    reads = source.choice(("fc", "taps", "features"))
    dtype = source.choice((torch.float32, torch.float32, torch.bfloat16, torch.float16))
    sizes = [3 * k if reads == "taps" else width, hidden, horizon * actions]
    matrices = [source.floats(sizes[i + 1], sizes[i]).to(dtype) for i in range(2)]
    chunks = source.choice((0, 1, 3)) if reads != "features" else 0
    built = {
        "hidden_weights": matrices[:1],
        "hidden_biases": [source.floats(hidden)],
        "output_weight": matrices[1],
        "output_bias": source.floats(horizon * actions),
        "actions": source.integers(1, 60, actions, source.choice((3, 4)), dtype=torch.int32),
        "fc_weight": source.floats(width, 3 * k).to(dtype) if reads == "fc" else None,
        "fc_bias": source.floats(width) if reads == "fc" else None,
        "norm_weight": source.floats(3 * k) if chunks else None,
        "norm_chunks": chunks,
        "activation": source.choice(("tanh", "relu", "silu")),
        "mlp_input": "taps" if reads == "taps" else "features",
        "horizon": horizon,
        "fallback_action": source.randrange(actions),
    }
    return ops.PolicyWeights(**(built | fields))


def make_cache(source: Source, slots: int, horizon: int, compared: int) -> ops.ActionCache:
    mode = "scheduled" if horizon > 1 else source.choice(("fixed", "adaptive", "scheduled"))
    return ops.ActionCache(
        slots, source.choice((1, 2, 9)), mode, threshold=source.choice((-1.0, 0.5, 1.0)),
        reference_size=compared, horizon=horizon,
    )  # fmt: skip


def inputs_of(source: Source, weights: ops.PolicyWeights, rows: int) -> list[Tensor | None]:
    dtype = source.choice((torch.float32, torch.float32, torch.bfloat16, torch.float16))
    whole = source.floats(rows, weights.joined_size or weights.feature_size).to(dtype)
    if weights.joined_size is None or source.random() < 0.5:
        return [whole, None, None]
    return [part.contiguous() for part in whole.chunk(3, 1)]


def rms_norm(source: Source) -> Call:
    rows, hidden = source.choice((0, 1, 3, 70)), source.choice((1, 8, 65))
    arguments = {"x": source.floats(rows, hidden), "weight": source.floats(hidden), "eps": 1e-5}
    if rows and source.random() < 0.5:
        arguments["index"] = source.integers(0, rows, source.choice((0, 4)), dtype=torch.int64)
    if source.random() < 0.5:
        count = len(arguments.get("index", arguments["x"]))
        arguments["out"] = source.floats(count, hidden)
    plain = {name: value for name, value in arguments.items() if name != "out"}
    return ops.rms_norm, arguments, lambda: ops.rms_norm_ref(**plain)


def silu_mul(source: Source) -> Call:
    gate_up = source.floats(source.choice((0, 1, 5)), 2 * source.choice((0, 1, 7, 32)))
    arguments = {"gate_up": gate_up}
    if source.random() < 0.5:
        arguments["out"] = source.floats(len(gate_up), gate_up.shape[1] // 2)
    return ops.silu_mul, arguments, lambda: ops.silu_mul_ref(gate_up)


def move_rows(source: Source) -> Call:
    capacity = source.choice((1, 4, 40))
    shape = [source.choice((1, 2, 3)) for _ in range(source.randrange(3))]
    cache = source.floats(*shape, capacity, source.choice((1, 8)))
    destination = source.randrange(capacity)
    span = capacity - destination
    rows = destination + source.permuted(source.randrange(span + 1), span, torch.int32)
    arguments = {"cache": cache, "rows": rows.sort().values, "destination": destination}
    expected = cache.clone()
    ops.move_rows_ref(expected, arguments["rows"], destination)

    def moved(**given: Any) -> Any:
        ops.move_rows(**given)
        return given["cache"]

    return moved, arguments, lambda: expected


def accept_path(source: Source) -> Call:
    count = source.choice((1, 2, 9, 100))
    parents = [-1, *(source.randrange(row) for row in range(1, count))]
    arguments = {
        "parents": torch.tensor(parents, dtype=torch.int32),
        "token_ids": source.integers(0, 3, count, dtype=torch.int64),
        "choices": source.integers(0, 3, count, dtype=torch.int64),
    }
    # Of children with one token the first is taken by both.
    return ops.accept_path, arguments, lambda: ops.accept_path_ref(**arguments)


def greedy_paths(source: Source) -> Call:
    rows, first, vocab = source.choice((1, 9, 30)), source.choice((0, 2)), source.choice((1, 600))
    parents = [-1, *(source.randrange(row) for row in range(1, rows))]
    arguments = {
        "logits": source.integers(-2, 3, first + rows, vocab, dtype=torch.float32),
        "parents": torch.tensor(parents, dtype=torch.int32),
        "token_ids": source.integers(0, 3, rows, dtype=torch.int64),
        "first_row": first,
    }

    def of_two(
        compute: Callable[..., Any],
        logits: Tensor,
        parents: Tensor,
        token_ids: Tensor,
        first_row: int,
    ) -> Tensor:
        tree = ops.DraftTree(token_ids, parents, *[torch.empty(0)] * 3)
        paths = compute(logits, [tree, tree], [first_row] * 2)
        return torch.tensor([n for rows, tokens, nan in paths for n in (*rows, *tokens, nan)])

    def expected() -> object:
        return of_two(ops.greedy_paths_ref, **arguments)

    return partial(of_two, ops.greedy_paths), arguments, expected


def tree_structure(source: Source) -> Call:
    count = source.choice((1, 2, 9, 100))
    parents = [-1, *(source.randrange(row) for row in range(1, count))]

    def levels() -> Tensor:
        expected = [0]
        for parent in parents[1:]:
            expected.append(expected[parent] + 1)
        return torch.tensor(expected, dtype=torch.int32)

    arguments = {"parents": torch.tensor(parents, dtype=torch.int32)}
    return lambda parents: ops.tree_structure(parents)[0], arguments, levels


def cached_attention(source: Source) -> Call:
    slots, kv_heads, group = (source.choice((1, 2)) for _ in range(3))
    dim, rows = source.choice((8, 16, 40)), source.choice((1, 2, 11))
    capacity, block = source.choice((11, 80)), source.choice((0, 0, 11))
    per_row = {"dtype": torch.int32}
    dtype = source.choice((torch.float32, torch.float32, torch.bfloat16, torch.float16))
    prefix = source.randrange(capacity - block + 1) if block else 0
    arguments = {
        "qkv": source.floats(rows, (group * kv_heads + 2 * kv_heads) * dim),
        "cos": source.floats(13, dim // 2),
        "sin": source.floats(13, dim // 2),
        "key_cache": source.floats(slots, kv_heads, capacity, dim).to(dtype),
        "value_cache": source.floats(slots, kv_heads, capacity, dim).to(dtype),
        "positions": source.integers(0, 13, rows, **per_row),
        "cache_rows": source.permuted(rows, capacity, torch.int32),
        "prefix_lengths": torch.full((rows,), prefix, **per_row)
        if block
        else source.integers(0, capacity + 1, rows, **per_row),
        "block_length": block,
        "eps": 1e-6,
    }
    if source.random() < 0.5:
        arguments["slots"] = source.integers(0, slots, rows, **per_row)
    if block:
        arguments["mask"] = source.integers(-(2**62), 2**62, rows, 1, dtype=torch.int64)
    if source.random() < 0.3:
        arguments |= {"query_norm": source.floats(dim), "key_norm": source.floats(dim)}
    copies = {n: v.clone() if isinstance(v, Tensor) else v for n, v in arguments.items()}
    if dtype is not torch.float32:
        # A key on the border of two numbers may be rounded to the other one in the reference.
        return ops.cached_attention, arguments, None
    return ops.cached_attention, arguments, lambda: ops.cached_attention_ref(**copies)


def _decision(source: Source) -> tuple[ops.PolicyWeights, dict[str, Any]]:
    weights = make_weights(source, horizon=source.choice((1, 1, 2)))
    rows = source.choice((1, 2, 6, 130))
    low, mid, high = inputs_of(source, weights, rows)
    arguments: dict[str, Any] = {"low": low, "mid": mid, "high": high}
    count = rows
    if source.random() < 0.5:
        count = source.choice((1, 3))
        arguments["rows"] = source.integers(0, rows, count, dtype=torch.int64)
    if source.random() < 0.5:
        arguments["last"] = source.integers(0, count, source.choice((1, 2)), dtype=torch.int64)
    arguments |= {"temperature": source.choice((0.0, 0.7)), "seed": source.randrange(9)}
    arguments["offset"] = source.randrange(9)
    return weights, arguments


def fused_encode(source: Source) -> Call:
    weights, arguments = _decision(source)
    arguments |= {"weights": weights, "return_features": source.random() < 0.5}
    count = len(arguments.get("last", arguments.get("rows", arguments["low"])))
    expected = dict(arguments)
    if source.random() < 0.4:
        wide = arguments["return_features"] and weights.fc_weight is not None
        size = weights.feature_size if wide or weights.joined_size is None else 64
        arguments["cache"] = make_cache(source, count + 1, weights.horizon, size)
        arguments["slots"] = source.permuted(count, count + 1)
    return (
        lambda **given: ops.fused_encode(**given).logits,
        arguments,
        lambda: ops.fused_encode_ref(**expected).logits,
    )


def policy_mlp(source: Source) -> Call:
    weights = make_weights(source)
    width = weights.feature_size or 5
    arguments = {"features": source.floats(4, width), "weights": weights, "temperature": 0.0}
    if source.random() < 0.5:
        arguments["rows"] = source.integers(0, 4, 2, dtype=torch.int64)
    if weights.feature_size is None:
        return ops.policy_mlp, arguments, None
    plain = dict(arguments)
    return (
        lambda **given: ops.policy_mlp(**given).logits,
        arguments,
        lambda: ops.policy_mlp_ref(**plain).logits,
    )


def _step_arguments(source: Source) -> tuple[dict[str, Any], ops.ActionCache]:
    horizon, actions, count = source.choice((1, 1, 3)), source.choice((1, 6)), source.choice((1, 4))
    cache = make_cache(source, 5, horizon, 20)
    if source.random() < 0.5:  # what anyone may write to a record
        words = source.integers(-3, 9, 5, 16, dtype=torch.int32)
        cache.state.copy_(words if source.random() < 0.5 else cache.state | words)
    arguments = {
        "logits": source.floats(count, horizon * actions),
        "actions": source.integers(1, 60, actions, source.choice((3, 4)), dtype=torch.int32),
        "features": source.floats(count, 20),
        "slots": source.permuted(count, 5),
        "temperature": source.choice((0.0, 0.5)),
        "seed": 3,
        "offset": 4,
        "fallback_action": source.randrange(actions),
    }
    return arguments, cache


def action_cache_step(source: Source) -> Call:
    arguments, cache = _step_arguments(source)
    return ops.action_cache_step, arguments | {"cache": cache}, None


def operator_step(source: Source) -> Call:
    arguments, cache = _step_arguments(source)
    kept = {"state": cache.state, "reference": cache.reference, "ring": cache.ring}
    arguments |= kept | {"cache_mode": cache.mode}
    return torch.ops.eaglerl.action_cache_step, arguments, None


def _operator_arguments(source: Source, cached: bool) -> tuple[dict[str, Any], Any]:
    weights, arguments = _decision(source)
    name = "fused_encode_cached" if cached else "fused_encode"
    operator = getattr(torch.ops.eaglerl, name)
    names = [argument.name for argument in operator.default._schema.arguments]
    arguments |= dict(zip(names[5:17], flatten(weights), strict=True))
    wide = weights.fc_weight is not None and source.random() < 0.5
    arguments["return_features"] = wide
    for missing in ("rows", "last"):
        arguments.setdefault(missing, None)
    if cached:
        last, rows = arguments["last"], arguments["rows"]
        count = len(last if last is not None else rows if rows is not None else arguments["low"])
        size = weights.feature_size if wide or weights.joined_size is None else 64
        cache = make_cache(source, count + 1, weights.horizon, size)
        arguments |= {"state": cache.state, "reference": cache.reference, "ring": cache.ring}
        arguments |= {"slots": source.permuted(count, count + 1), "cache_mode": cache.mode}
    return arguments, weights


def operator_encode(source: Source) -> Call:
    arguments, weights = _operator_arguments(source, False)
    names = ("low", "mid", "high", "rows", "last", "temperature", "seed", "offset")
    plain = {name: arguments[name] for name in names}
    return (
        lambda **given: torch.ops.eaglerl.fused_encode(**given)[1],
        arguments,
        lambda: ops.fused_encode_ref(weights=weights, **plain).logits,
    )


def operator_encode_cached(source: Source) -> Call:
    arguments, _ = _operator_arguments(source, True)
    return torch.ops.eaglerl.fused_encode_cached, arguments, None


def policy_weights(source: Source) -> Call:
    weights = make_weights(source)
    arguments = {name: getattr(weights, name) for name in weights.__dataclass_fields__}

    def construct(**given: Any) -> None:
        made = ops.PolicyWeights(**given)
        width = made.joined_size or made.feature_size
        ops.fused_encode(torch.ones(1, width), None, None, made, return_features=False)

    return construct, arguments, None


PUBLIC = {
    "rms_norm": rms_norm,
    "silu_mul": silu_mul,
    "move_rows": move_rows,
    "accept_path": accept_path,
    "greedy_paths": greedy_paths,
    "tree_structure": tree_structure,
    "cached_attention": cached_attention,
    "fused_encode": fused_encode,
    "policy_mlp": policy_mlp,
    "action_cache_step": action_cache_step,
    "accept_draft": accept_draft,
    "extend_ngrams": extend_ngrams,
    "select_draft_nodes": select_draft_nodes,
    "PolicyWeights": policy_weights,
}
OPERATORS = {
    "fused_encode": operator_encode,
    "fused_encode_cached": operator_encode_cached,
    "action_cache_step": operator_step,
    "accept_draft": operator_accept,
    "extend_ngrams": operator_extend,
    "select_draft_nodes": operator_select,
}


def run(call: Call, source: Source) -> str:
    """Run a call and return "ok" or "different"."""
    function, arguments, reference = call
    weights = arguments.get("weights")
    given, spoiled = spoil_some(arguments, source)
    if weights is not None and source.random() < 0.2:  # behind the back of its checks
        tensors = [t for t in weights.tensors().values() if t.ndim == 2]
        victim, other = source.choice(tensors), spoil(source.choice(tensors), source)
        if isinstance(other, Tensor) and other.device == victim.device:
            spoiled = True
            victim.data = other.detach()
    result = function(**given)
    if spoiled or reference is None or "cache" in arguments:
        return "ok"
    expected = reference()
    close = torch.allclose(result.double(), expected.double(), rtol=1e-3, atol=1e-3, equal_nan=True)
    return "ok" if result.shape == expected.shape and close else "different"
