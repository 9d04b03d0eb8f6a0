"""Events that describe a cycle to the page: drafted and accepted tokens, and times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from eaglerl.eagle3 import Generation, StepResult
from eaglerl.eagle3.tree.device_tree import DeviceTree
from eaglerl.ops import DraftTree
from eaglerl.server.text import IncrementalText

_TEXTS_KEPT = 65_536


class CycleDescriber:
    """Descriptions of cycles as JSON values."""

    def __init__(self, tokenizer: Any) -> None:
        """Set up.

        Args:
            tokenizer: a tokenizer of transformers.
        """

        @lru_cache(_TEXTS_KEPT)
        def token_text(token_id: int) -> str:
            return tokenizer.decode([token_id], clean_up_tokenization_spaces=False)

        self._token_text = token_text

    def cycle(
        self, generation: Generation, kept: Sequence[int], text: IncrementalText, policy: float
    ) -> dict[str, Any]:
        """Describe the last cycle.

        Args:
            generation: the generation after the cycle.
            kept: tokens that the cycle added to the output.
            text: text of the output; the tokens are added to it.
            policy: seconds that the policy took.
        """
        result = generation.cycles[-1]
        tree = generation.session.tree
        # The session keeps the tree of its last cycle.
        assert tree is not None
        nodes = tree_nodes(tree, result)
        for node in nodes:
            node["text"] = self._token_text(node["id"])
        path = [node["source"] for node in nodes if node["accepted"]][1:]
        sources = [*path, "target"][: len(kept)]
        statistics = generation.statistics
        decoded = statistics.new_tokens - 1
        return {
            "cycle": len(generation.cycles),
            "tokens": [
                {"id": token, "text": text.push(token), "source": source}
                for token, source in zip(kept, sources, strict=True)
            ],
            "bonus": {"id": result.token_ids[-1], "text": self._token_text(result.token_ids[-1])},
            "nodes": nodes,
            "total_tokens": result.params.total_tokens,
            "depth": result.params.depth,
            "top_k": result.params.top_k,
            "rows": result.rows,
            "lookup": {
                "match_length": result.lookup.match_length,
                "tokens": len(result.lookup.token_ids),
                "accepted": result.lookup_accepted,
            },
            "acceptance_length": result.accepted + 1,
            "seconds": {
                "draft": result.draft_seconds,
                "verify": result.verify_seconds,
                "policy": policy,
            },
            "totals": {
                "tokens": statistics.new_tokens,
                "mean_acceptance_length": statistics.mean_acceptance_length,
                "decode_seconds": statistics.decode_seconds,
                "tokens_per_second": decoded / statistics.decode_seconds,
            },
        }


def tree_nodes(tree: DraftTree | DeviceTree, result: StepResult) -> list[dict[str, Any]]:
    """Return the rows that a cycle verified, parents first.

    Args:
        tree: tree of the cycle.
        result: result of the cycle.

    Returns:
        For every row the index of its "parent" in the list (-1 for the root), the token "id", the
        "score" (the draft's cumulative log-probability, None if the draft did not score it),
        whether it was "accepted", and its "source": "root", "head", "lookup", or "both" if the
        head's tree and the looked-up tokens share it.
    """
    parents, tokens = tree.parents.tolist(), tree.token_ids.tolist()
    scores = tree.scores.tolist()
    rows = list(range(len(tokens)))
    if isinstance(tree, DeviceTree):
        # Looked-up rows that the head's tree also has are computed but disabled.
        rows = [row for row, enabled in enumerate(tree.enabled.tolist()) if enabled]
    place = {row: index for index, row in enumerate(rows)}
    above = [-1 if row == 0 else place[parents[row]] for row in rows]
    ids = [tokens[row] for row in rows]
    children = {(above[index], ids[index]): index for index in range(1, len(rows))}
    accepted = {0, *_walk(children, result.token_ids[:-1])}
    looked_up = set(_walk(children, result.lookup.token_ids))
    nodes = []
    for index, row in enumerate(rows):
        scored = not math.isnan(scores[row])
        source = "both" if scored and index in looked_up else "head" if scored else "lookup"
        nodes.append(
            {
                "parent": above[index],
                "id": ids[index],
                "score": scores[row] if scored else None,
                "accepted": index in accepted,
                "source": source if index else "root",
            }
        )
    return nodes


def _walk(children: dict[tuple[int, int], int], tokens: Sequence[int]) -> list[int]:
    """Return the nodes on the path of some tokens from the root, as far as it exists."""
    node, path = 0, []
    for token in tokens:
        child = children.get((node, token))
        if child is None:
            break
        path.append(child)
        node = child
    return path
