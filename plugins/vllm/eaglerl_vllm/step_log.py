"""A file with every step of every request, for `eaglerl headroom`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eaglerl.eagle3.tree.prompt_lookup import common_length

if TYPE_CHECKING:
    from eaglerl_vllm.adaptive_proposer import Planned


class StepLog:
    """Adds one JSON object a line; docs/engines.md describes them."""

    def __init__(self, path: str) -> None:
        """Begin to add to a file.

        Raises:
            OSError: it cannot be written.
        """
        # A line at a time: vLLM's processes end without closing their files.
        self._file = Path(path).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def add(
        self,
        request: str,
        planned: Planned,
        tokens: list[int],
        batch: int,
        rows: int,
        verify_seconds: float,
        draft_seconds: float,
    ) -> None:
        """Add a request's step.

        Args:
            request: its id.
            planned: what was drafted, and what of it was verified.
            tokens: the new tokens.
            batch: requests of the step.
            rows: rows that the step has verified.
            verify_seconds: time of the step without drafting; 0 if it was not measured.
            draft_seconds: time of drafting; 0 if it was not measured.
        """
        line: dict[str, Any] = {
            "request": request,
            "position": planned.position,
            "context": planned.context,
            "batch": batch,
            "logprobs": [round(logprob, 5) for logprob in planned.logprobs],
            "accepted": common_length(planned.drafted, tokens),
            "verified": 1 + len(planned.chain),
            "source": planned.source,
        }
        if planned.lookup.match_length:
            line["lookup"] = {
                "match": planned.lookup.match_length,
                "tokens": len(planned.lookup.token_ids),
                "accepted": common_length(planned.lookup.token_ids, tokens),
            }
        if verify_seconds > 0.0:
            line |= {"verify_seconds": verify_seconds, "draft_seconds": draft_seconds, "rows": rows}
        self._file.write(json.dumps(line) + "\n")
