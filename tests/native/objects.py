"""Objects that keep state, driven by random calls between which their tensors are replaced."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import torch
from arguments import OTHERS, Source, spoil
from operations import inputs_of, make_cache, make_weights
from torch import Tensor

from eaglerl import ops
from eaglerl.ops._check import check_memory

DOCUMENTED = (ValueError, TypeError, RuntimeError, NotImplementedError)


def _replace(tensor: Tensor | None, source: Source) -> None:
    """Change a tensor in place, behind the back of the object that holds it."""
    if tensor is None:
        return
    try:
        check_memory("tensor", tensor)
    except ValueError:  # torch itself would write behind its memory
        tensor.set_(torch.zeros(tensor.shape, dtype=tensor.dtype))
    if tensor.is_shared():  # torch 2.13 itself dies of a shared storage that is resized
        tensor.set_(tensor.clone())
    other = torch.empty_like(tensor).copy_(tensor)
    changes: tuple[Callable[[], Any], ...] = (
        lambda: tensor.set_(other),
        lambda: setattr(tensor, "data", other),
        lambda: tensor.resize_(tuple(source.choice((size, size + 3, 1)) for size in tensor.shape)),
        lambda: tensor.untyped_storage().resize_(tensor.untyped_storage().nbytes() * 2),
        lambda: tensor.untyped_storage().resize_(source.choice((0, 4))),
        tensor.share_memory_,
        lambda: tensor.t_() if tensor.ndim == 2 else tensor.unsqueeze_(0),
        lambda: setattr(tensor, "data", source.choice((other.double(), other[:0], other.long()))),
        lambda: tensor.as_strided_((4,) * tensor.ndim, (0,) * tensor.ndim),
        lambda: (
            tensor.fill_(source.choice((-1, 0, 2**31 - 1)))
            if not tensor.dtype.is_floating_point
            else tensor.fill_(float("nan"))
        ),
    )
    source.choice(changes)()


def _drive(actions: list[Callable[[], Any]], source: Source, count: int) -> str:
    """Call some of the actions; documented errors are right, unless all raise."""
    problem, succeeded = None, 0
    for _ in range(count):
        try:
            source.choice(actions)()
            succeeded += 1
        except DOCUMENTED as error:
            problem = error
    if problem is not None and not succeeded:
        raise problem
    return "ok"


def fused_encoder(source: Source) -> str:
    weights = make_weights(source, horizon=source.choice((1, 2)))
    wide = weights.fc_weight is not None and source.random() < 0.5
    size = weights.feature_size if wide or weights.joined_size is None else 64
    cache = make_cache(source, 4, weights.horizon, size) if source.random() < 0.7 else None
    low, mid, high = inputs_of(source, weights, 3)
    encoder = ops.FusedEncoder(
        weights, cache, max_rows=source.choice((3, 9)), max_sequences=3, dtype=low.dtype,
        return_features=wide,
    )  # fmt: skip
    outputs = [encoder.features, encoder.logits, encoder.action, encoder.params]
    kept = [] if cache is None else [cache.state, cache.reference, cache.ring]
    tensors = [low, mid, high, *outputs, *kept, *weights.tensors().values()]
    tensors = [tensor for tensor in tensors if tensor is not None]

    def encode(**options: Any) -> None:
        encoder.encode(low, mid, high, **options)

    def compare() -> None:
        if cache is not None:
            return encode()
        encode()
        count = len(low)
        expected = ops.fused_encode(low, mid, high, weights, return_features=wide)
        assert torch.equal(encoder.action[:count], expected.action), "different"

    actions = [
        compare,
        compare,
        encode,
        lambda: encode(rows=torch.tensor([2, 0]), last=torch.tensor([1])),
        lambda: encode(last=torch.tensor([0]), slots=torch.tensor([source.choice((0, 3, 9, -1))])),
        lambda: encode(rows=spoil(torch.tensor([2, 0]), source)),
        lambda: encode(offset=spoil(1, source)),
        lambda: encoder.encode(spoil(low, source), mid, high),
        lambda: _replace(source.choice(tensors), source),
        lambda: _replace(source.choice(tensors), source),
        lambda: source.choice((copy.copy, copy.deepcopy, pickle.dumps))(encoder),
        lambda: ops.FusedEncoder(spoil(weights, source), spoil(cache, source)),
        lambda: ops.FusedEncoder(weights, cache, max_rows=spoil(3, source)),
        lambda: ops.FusedEncoder(weights, max_sequences=spoil(3, source), dtype=torch.int8),
    ]
    return _drive(actions, source, 12)


def action_cache(source: Source) -> str:
    horizon = source.choice((1, 1, 3))
    cache = make_cache(source, source.choice((1, 3)), horizon, 5)
    trees = source.integers(1, 60, 4, 3, dtype=torch.int32)
    rows = cache.slots
    caches = [cache]

    def step(**options: Any) -> None:
        features = source.floats(rows, 5)
        logits = source.floats(rows, horizon * 4)
        action, params = ops.action_cache_step(
            logits, trees, caches[0], features=features, **options
        )
        assert action.shape == (rows,) and params.shape == (rows, 3), "different"  # noqa: PT018

    def load() -> None:
        state = caches[0].state_dict()
        if source.random() < 0.8:
            name = source.choice(list(state))
            state[name] = spoil(state[name], source)
        caches[0].load_state_dict(source.choice((state, state, state, None, {}, [state])))

    def settings() -> None:
        names = ("slots", "interval", "reference_size", "horizon")
        ops.ActionCache(**{source.choice(names): spoil(2, source)}, mode="scheduled")

    actions = [
        step,
        step,
        step,
        lambda: step(slots=spoil(torch.arange(rows), source)),
        lambda: step(temperature=spoil(0.5, source), seed=spoil(1, source)),
        lambda: step(fallback_action=spoil(1, source)),
        load,
        load,
        lambda: cache.reset(source.choice((None, [0], [-1], [9], *OTHERS))),
        lambda: cache.invalidate(source.choice((None, [0], torch.tensor([0, 0]), *OTHERS))),
        lambda: cache.stats(),
        lambda: (
            _replace(source.choice([cache.state, cache.ring, cache.reference]), source)
            if source.random() < 0.3
            else None
        ),
        lambda: caches.insert(0, source.choice((copy.copy, copy.deepcopy))(cache)),
        lambda: caches.insert(0, pickle.loads(pickle.dumps(cache))),
    ]
    if source.random() < 0.8:  # sizes that fit no machine are for settings() alone
        return _drive(actions, source, 12)
    return _drive([settings], source, 3)


def draft_tree_builder(source: Source) -> str:
    builder = ops.DraftTreeBuilder()
    top_k, vocab = source.choice((1, 3, 8)), source.choice((8, 100))
    to_target = source.integers(0, 2**40, vocab, dtype=torch.int64)
    maps = [None, to_target, spoil(to_target, source)]

    def maybe(value: Any) -> Any:
        return spoil(value, source) if source.random() < 0.25 else value

    actions = [
        lambda: builder.begin(maybe(3), maybe(top_k)),
        lambda: builder.first(maybe(source.floats(vocab)), source.choice(maps)),
        lambda: builder.expand(maybe(source.floats(top_k, vocab)), source.choice(maps)),
        lambda: builder.expand(maybe(source.floats(top_k, vocab))),
        builder.frontier,
        builder.scores,
        lambda: builder.finish(maybe(source.choice((1, 2, top_k + 1)))),
        lambda: builder.finish_selected(
            maybe(source.sample(range(20), source.randrange(5))), maybe([1, 2])
        ),
        lambda: builder.lookup_nodes(maybe([1, 2, 3]), maybe(2)),
        lambda: builder.progress(maybe([1, 2, 3]), maybe(2)),
        lambda: source.choice((copy.copy, copy.deepcopy, pickle.dumps))(builder),
    ]
    if source.random() < 0.8:
        builder.begin(3, top_k)
        builder.first(source.floats(vocab))
    return _drive(actions, source, 12)


OBJECTS: dict[str, Callable[[Source], str]] = {
    "FusedEncoder": fused_encoder,
    "ActionCache": action_cache,
    "DraftTreeBuilder": draft_tree_builder,
}
