"""Random drafts, with looked-up tokens that follow them for a while."""

from dataclasses import dataclass, replace

import numpy as np

from eaglerl.eagle3.policy import DraftProgress
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP, Lookup


@dataclass(frozen=True)
class Sizes:
    """How wide and deep drafts are, how many rows a tree may have, and what is looked up."""

    top_k: int
    depth: int
    rows: int
    lookup_tokens: int


def random_sizes(draw: np.random.Generator) -> Sizes:
    width, depth = int(draw.integers(1, 6)), int(draw.integers(4))
    rows = min(int(draw.integers(2, 41)), 1 + width + depth * width**2)
    return Sizes(width, depth, rows, int(draw.integers(7)))


def random_draft(draw: np.random.Generator, sizes: Sizes) -> DraftProgress:
    """A draft after all its rounds, in part of equal scores."""
    width, depth = sizes.top_k, sizes.depth
    parents: list[int] = [-1] * width
    scores = list(-np.sort(draw.integers(0, 4, width) / 2))
    begin, end = 0, width
    for _ in range(depth):
        frontier = sorted(range(begin, end), key=lambda i: (-scores[i], i))[:width]
        for node in frontier:
            gains = draw.integers(0, 3, width) / 2 if draw.random() < 0.5 else draw.random(width)
            scores += list(scores[node] - np.sort(gains))
            parents += [node] * width
        begin, end = end, end + width**2
    match = int(draw.integers(0, 20)) if sizes.lookup_tokens else 0
    node, path = int(draw.integers(-1, len(scores))) if match else -1, []
    while node >= 0:
        path.insert(0, node)
        node = parents[node]
    path = path[: sizes.lookup_tokens]
    return DraftProgress(
        top_k=width,
        depth=depth,
        scores=np.array(scores, dtype=np.float32),
        context_length=int(draw.integers(5, 3000)),
        lookup=Lookup(match, tuple(range(sizes.lookup_tokens))) if match else NO_LOOKUP,
        lookup_nodes=np.array(path + [-1] * (depth + 1 - len(path))) if match else None,
    )


def at_depth(progress: DraftProgress, depth: int) -> DraftProgress:
    """The same draft as of an earlier round."""
    nodes = progress.lookup_nodes
    return replace(
        progress,
        depth=depth,
        scores=progress.scores[: progress.top_k + depth * progress.top_k**2],
        lookup_nodes=None if nodes is None else nodes[: depth + 1],
    )
