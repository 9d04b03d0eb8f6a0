"""Traces: the outcome of every draft tree at every position of known continuations.

In greedy decoding the continuation does not depend on the trees, so one recording serves all of
them. For a width K, the pool of candidates of depth D is the first K + D K^2 of one long pool.
``ranks`` holds r(D, l), the rank in that pool of the node at level l of the true continuation (0 is
the best; by descending score, then ascending index). A tree of T rows verifies the T - 1 best
candidates, so its acceptance length is
L(T, D, K) = 1 + the number of leading levels l with r(D, l) < T - 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from eaglerl._renamed import renamed_attributes
from eaglerl.eagle3.policy import TreeParams
from eaglerl.fingerprints import ModelId
from eaglerl.tensor_file import check_tensor, open_tensors, write_tensors
from eaglerl.traces.trace_index import read_index

#: Rank of a node outside the pool.
ABSENT = np.iinfo(np.int16).max


@dataclass(frozen=True, eq=False)
class Trace:
    """One prompt's continuation: P positions in the order of the text, each the root of a tree.

    The root of position i is continuation token i; its tree drafts from token i + 1 on. Arrays may
    be views of a file.

    Attributes:
        domain: source of the prompt.
        prompt_id: hash of the prompt.
        prompt_ids: (n,) int32.
        continuation_ids: (P + 1 + tail,) int32; the tail is what the target would write after the
            end.
        top_ks: recorded widths, ascending.
        ranks: (P, len(top_ks), D + 1, D + 1) int16, rank r(depth, level); `ABSENT` outside the
            pool.
        path: (P, len(top_ks), D + 1) int16, index in the pool of the true node of each level; -1
            for none.
        scores: for each width, (P, K + D K^2) float16 cumulative log-probabilities, in the pool's
            order.
        first_log_probs: (P, 8) float16, the best of the first draft pass.
        features: (P, k) float16, output of the head's fc for the token before the root.
        lookup_match: (P,) uint8, length of the longest earlier match of the text's end; 0 for none.
        lookup_accepted: (P,) uint8, number of leading looked-up tokens that are accepted.
        lookup_path: (P, len(top_ks), D + 1) int16, index in the pool of the looked-up token of each
            level; -1 from the first level on whose token the draft did not propose.
        lookup_tokens: number of tokens looked up at every position.
    """

    domain: str
    prompt_id: str
    prompt_ids: np.ndarray
    continuation_ids: np.ndarray
    top_ks: tuple[int, ...]
    ranks: np.ndarray
    path: np.ndarray
    scores: Mapping[int, np.ndarray]
    first_log_probs: np.ndarray
    features: np.ndarray
    lookup_match: np.ndarray
    lookup_accepted: np.ndarray
    lookup_path: np.ndarray
    lookup_tokens: int

    def __len__(self) -> int:
        return self.ranks.shape[0]

    @property
    def max_depth(self) -> int:
        """Largest recorded depth."""
        return self.ranks.shape[2] - 1

    @cached_property
    def remaining(self) -> np.ndarray:
        """Tokens left to emit at each position, (P,) int64."""
        return np.arange(len(self), 0, -1)

    @cached_property
    def context_lengths(self) -> np.ndarray:
        """Tokens before the tree of each position, the root included, (P,) int64."""
        return len(self.prompt_ids) + 1 + np.arange(len(self))

    def accepted_lengths(self, actions: Sequence[TreeParams]) -> np.ndarray:
        """Return the acceptance length L of every action at every position, bonus token included.

        Args:
            actions: A trees.

        Returns:
            (P, A) int16; near the end, values may exceed `remaining`.

        Raises:
            ValueError: a tree's width or depth was not recorded.
        """
        lengths = np.empty((len(self), len(actions)), dtype=np.int16)
        for column, tree in enumerate(actions):
            lengths[:, column] = self._lengths(self.ranks, tree)
        return lengths

    def check_tree(self, tree: TreeParams) -> None:
        """Check that a tree's width and depth were recorded.

        Raises:
            ValueError: they were not.
        """
        if tree.top_k not in self.top_ks or tree.depth > self.max_depth:
            raise ValueError(
                f"{tree} is not in the trace, which has top_k in {list(self.top_ks)} and depth "
                f"up to {self.max_depth}"
            )

    def _lengths(self, ranks: np.ndarray, tree: TreeParams) -> np.ndarray:
        """Return the (n,) lengths of a tree at the positions of `ranks` (n, ...)."""
        if tree.total_tokens == 1:
            return np.ones(len(ranks), dtype=np.int64)
        self.check_tree(tree)
        path = ranks[:, self.top_ks.index(tree.top_k), tree.depth, : tree.depth + 1]
        kept = np.logical_and.accumulate(path < tree.total_tokens - 1, axis=1)
        return 1 + kept.sum(axis=1)

    def accepted_lengths_at(self, position: int, tree: TreeParams) -> int:
        """Return the acceptance length of one tree at one position.

        Raises:
            ValueError: the tree's width or depth was not recorded.
        """
        return int(self._lengths(self.ranks[position : position + 1], tree)[0])


# The old name hides `Sequence.index`, which is why it is the old one.
@renamed_attributes(index="header")
class TraceSet(Sequence[Trace]):
    """The traces of a folder; a shard is mapped into memory when its trace is used.

    Attributes:
        folder: folder of the files.
        header: content of the index, as written by the recorder.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read the index.

        Raises:
            ValueError: the index is missing, malformed or of another version.
        """
        self.folder = Path(folder)
        self.header = read_index(self.folder)
        self._shards = [shard for shard in self.header["shards"] if shard["positions"]]

    @property
    def target_id(self) -> ModelId:
        """Hash of the target that wrote the continuations."""
        return ModelId(self.header["target_id"], self.header["target_fingerprint"])

    @property
    def head_id(self) -> ModelId:
        """Hash of the head that was replayed."""
        return ModelId(self.header["head_id"], self.header["head_fingerprint"])

    def check_ids(self, *, target_id: str | None = None, head_id: str | None = None) -> None:
        """Check that the traces belong to a target and head.

        Raises:
            ValueError: they belong to another one; the message names both.
        """
        for name, wanted in (("target_id", target_id), ("head_id", head_id)):
            if wanted is not None and self.header[name] != wanted:
                raise ValueError(
                    f"{name} of the traces in {str(self.folder)!r} is {self.header[name]}, "
                    f"wanted {wanted}"
                )

    @property
    def positions(self) -> int:
        """Positions of all traces."""
        return sum(shard["positions"] for shard in self._shards)

    def __len__(self) -> int:
        return len(self._shards)

    @overload
    def __getitem__(self, index: int) -> Trace: ...
    @overload
    def __getitem__(self, index: slice) -> list[Trace]: ...

    def __getitem__(self, index: int | slice) -> Trace | list[Trace]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        shard = self._shards[index]
        return read_shard(self.folder / shard["file"], shard, self.header)

    def __iter__(self) -> Iterator[Trace]:
        return (self[index] for index in range(len(self)))


def shard_tensors(trace: Trace) -> dict[str, torch.Tensor]:
    """Return the tensors of a trace by their names in a shard."""
    names = (
        "prompt_ids",
        "continuation_ids",
        "ranks",
        "path",
        "first_log_probs",
        "features",
        "lookup_match",
        "lookup_accepted",
        "lookup_path",
    )
    arrays = {name: getattr(trace, name) for name in names}
    arrays |= {f"scores_{top_k}": trace.scores[top_k] for top_k in trace.top_ks}
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def write_shard(path: Path, trace: Trace) -> None:
    """Write one trace as a safetensors file."""
    write_tensors(path, shard_tensors(trace))


def read_shard(path: Path, shard: Mapping[str, Any], index: Mapping[str, Any]) -> Trace:
    """Map one trace's file into memory.

    Args:
        path: the file.
        shard: the entry of the file in the index.
        index: the index.

    Raises:
        ValueError: the file is missing or not a safetensors file, or its tensors do not match the
            index.
    """
    top_ks = tuple(index["top_ks"])
    positions, levels = shard["positions"], index["max_depth"] + 1
    expected = {
        "ranks": (torch.int16, (positions, len(top_ks), levels, levels)),
        "path": (torch.int16, (positions, len(top_ks), levels)),
        "first_log_probs": (torch.float16, (positions, None)),
        "features": (torch.float16, (positions, index["hidden_size"])),
        "lookup_match": (torch.uint8, (positions,)),
        "lookup_accepted": (torch.uint8, (positions,)),
        "lookup_path": (torch.int16, (positions, len(top_ks), levels)),
        "prompt_ids": (torch.int32, (None,)),
        "continuation_ids": (torch.int32, (None,)),
    }
    for top_k in top_ks:
        pool = top_k + index["max_depth"] * top_k**2
        expected[f"scores_{top_k}"] = (torch.float16, (positions, pool))
    where = f"the trace {str(path)!r}"
    arrays = {}
    with open_tensors(path, "trace") as file:
        missing = sorted(expected.keys() - set(file.keys()))
        if missing:
            raise ValueError(f"{where} lacks the tensor {missing[0]!r}")
        for name, (dtype, shape) in expected.items():
            tensor = file.get_tensor(name)
            check_tensor(name, tensor, dtype, shape, where)
            arrays[name] = tensor.numpy()
    _check_values(arrays, shard, index, where)
    return Trace(
        domain=str(shard["domain"]),
        prompt_id=str(shard["prompt_id"]),
        top_ks=top_ks,
        scores={top_k: arrays.pop(f"scores_{top_k}") for top_k in top_ks},
        lookup_tokens=index["lookup_tokens"],
        **arrays,
    )


def _check_values(
    arrays: Mapping[str, np.ndarray],
    shard: Mapping[str, Any],
    index: Mapping[str, Any],
    where: str,
) -> None:
    """Check the values that serve as indices, and that numbers are not NaN."""
    pool = index["top_ks"][-1] + index["max_depth"] * index["top_ks"][-1] ** 2
    lookups, vocabulary = index["lookup_tokens"], np.iinfo(np.int32).max
    limits = {
        "ranks": (0, ABSENT),
        "path": (-1, pool - 1),
        "lookup_path": (-1, pool - 1),
        "lookup_accepted": (0, lookups),
        "prompt_ids": (0, vocabulary),
        "continuation_ids": (0, vocabulary),
    }
    for name, (low, high) in limits.items():
        values = arrays[name]
        if values.size and not low <= values.min() <= values.max() <= high:
            raise ValueError(
                f"{name!r} of {where} must lie in {low}..{high}, got {values.min()}..{values.max()}"
            )
    if not len(arrays["prompt_ids"]) or len(arrays["continuation_ids"]) <= shard["positions"]:
        raise ValueError(
            f"{where} must have a prompt and more than {shard['positions']} tokens after it, got "
            f"{len(arrays['prompt_ids'])} and {len(arrays['continuation_ids'])}"
        )
    for name, values in arrays.items():
        if values.dtype == np.float16 and np.isnan(values.min(initial=0.0)):
            raise ValueError(f"{name!r} of {where} must hold numbers, it holds NaN")
