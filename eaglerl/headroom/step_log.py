"""Steps that an engine logged while it decoded with chains of drafted tokens, as JSON lines.

docs/engines.md describes the format: one object per step and request.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from eaglerl.json_file import Count, Items, Schema, Seconds, parse_json, read_lines

#: Longest chain of a step.
MOST_LEVELS = 64
#: Most steps of all files together: 10 million take about 6 GB.
MOST_STEPS = 10_000_000

# Rounding may leave the logarithm of a probability just above 0.
_LogProbability = Annotated[float, Field(ge=-1e4, le=1e-3)]
_Length = Annotated[int, Field(ge=0, le=1 << 20)]
# Lines may be missing from a log, but not one in ten.
_MOST_ODD = 0.1


class LookupLine(Schema):
    """A looked-up chain: length of the match, tokens proposed, those that are right.

    Without `judged`, they are known as far as text was emitted.
    """

    match: _Length
    tokens: _Length
    accepted: _Length
    judged: _Length | None = None


class StepLine(Schema):
    """A line of the file; see docs/engines.md."""

    request: Annotated[str, Field(min_length=1, max_length=1000)]
    position: Count
    context: _Length
    batch: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    logprobs: Annotated[Items[_LogProbability], Field(max_length=MOST_LEVELS)]
    accepted: _Length
    lookup: LookupLine | None = None
    draft_seconds: Seconds | None = None
    verify_seconds: Seconds | None = None
    verified: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    rows: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    source: Annotated[str, Field(max_length=100)] | None = None

    def may_emit(self, tokens: int) -> bool:
        """Return whether the step may have emitted so many tokens."""
        if tokens == 1 + self.accepted:
            return True
        if self.lookup is not None and tokens in (self.lookup.accepted, 1 + self.lookup.accepted):
            return True
        # Of tokens that were drafted and not verified, the target's own may be the next.
        return tokens == self.accepted and (self.verified or tokens + 1) <= tokens


@dataclass(frozen=True, eq=False)
class Steps:
    """S steps of R requests, with chains of up to K drafted tokens.

    Attributes:
        requests: names of the requests.
        request: (S,) int64, index of each step's request, ascending.
        position: (S,) int64, tokens generated before the step, ascending for each request.
        context: (S,) int64, tokens in the KV cache.
        batch: (S,) int64, requests that the step served.
        log_probs: (S, K) float64 conditional log-probabilities of the drafted tokens; NaN beyond
            the drafted ones.
        judged: (S,) int64, drafted tokens whose fate is known: all, or the accepted ones where no
            more was emitted.
        accepted: (S,) int64, leading drafted tokens that are what was emitted.
        emitted: (S,) int64, tokens that the step emitted.
        match: (S,) int64, length of the match of prompt lookup; 0 for none.
        looked_up: (S,) int64, tokens that it proposed.
        lookup_judged: (S,) int64, how many of them have a known fate.
        lookup_accepted: (S,) int64, how many of them are right.
        draft_seconds: (S,) float64; NaN where it was not logged.
        verify_seconds: (S,) float64; NaN where it was not logged.
        rows: (S,) int64 rows of the whole step: as logged, or as many for each of its requests.
    """

    requests: tuple[str, ...]
    request: np.ndarray
    position: np.ndarray
    context: np.ndarray
    batch: np.ndarray
    log_probs: np.ndarray
    judged: np.ndarray
    accepted: np.ndarray
    emitted: np.ndarray
    match: np.ndarray
    looked_up: np.ndarray
    lookup_judged: np.ndarray
    lookup_accepted: np.ndarray
    draft_seconds: np.ndarray
    verify_seconds: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.request)

    @property
    def drafted(self) -> np.ndarray:
        """(S,) int64, number of drafted tokens."""
        return (~np.isnan(self.log_probs)).sum(axis=1)

    @property
    def levels(self) -> int:
        """Most drafted tokens that were judged in a step."""
        return int(self.judged.max(initial=0))

    @property
    def cut_short(self) -> float:
        """Share of the steps where fewer tokens were judged than in the longest, all accepted."""
        cut = (self.judged < self.levels) & (self.accepted == self.judged)
        return float(cut.mean())

    def of_requests(self, chosen: np.ndarray) -> np.ndarray:
        """Return the (S,) bool mask of the steps of some requests, given as a (R,) mask."""
        return chosen[self.request]

    def following(self, step: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return the place in `step` of the step that follows each of several numbers of tokens.

        A step that emits more tokens than the logged one passes over the logged steps that begin
        among these tokens: looked-up text is not looked up twice.

        Args:
            step: (n,) ascending indices of all steps of some requests.
            tokens: (n, m) tokens that each would emit.

        Returns:
            (n, m) int64, ascending to n, which is the end.
        """
        far = np.int64(1) << 40
        key = self.request[step] * far + np.minimum(self.position[step], far // 2)
        after = np.searchsorted(key, key[:, None] + tokens.astype(np.int64))
        return np.maximum(after, 1 + np.arange(len(step))[:, None])

    def visited(self, step: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return which steps a rule visits that emits `tokens` (n,), (n,) bool; see `following`."""
        following = self.following(step, tokens[:, None])[:, 0].tolist()
        visited, at = np.zeros(len(step), dtype=bool), 0
        while at < len(step):
            visited[at] = True
            at = following[at]
        return visited

    @property
    def tokens(self) -> np.ndarray:
        """(R,) float64 tokens that the logged steps of each request emitted."""
        return np.bincount(self.request, self.emitted, minlength=len(self.requests))


def read_steps(paths: Iterable[str | Path]) -> Steps:
    """Read files of steps; requests of different files are different.

    A last line without a line end, which an engine that still runs has not finished, is left out
    with a warning.

    Args:
        paths: files of JSON lines.

    Raises:
        MissingFileError: a file is missing; a ValueError and a FileNotFoundError.
        ValueError: a line is wrong, a file has no step or too many, or its steps do not continue
            one another: a count of accepted tokens that includes the target's own is found so.
    """
    lines: list[StepLine] = []
    names: list[str] = []
    for number, path in enumerate(map(Path, paths)):
        own = _read_file(path, MOST_STEPS - len(lines))
        _check_positions(own, path)
        lines += own
        names += [f"{number}:{line.request}" for line in own]
    if not lines:
        raise ValueError("steps must be given, got no file")
    return make_steps(lines, names)


def _read_file(path: Path, most: int) -> list[StepLine]:
    lines: list[StepLine] = []
    for line in read_lines(path, "log of steps"):
        if not line.ended:
            warnings.warn(f"{line.where} is not finished; it is left out", stacklevel=4)
            break
        step = parse_json(line.data, StepLine, line.where)
        if step.accepted > len(step.logprobs):
            raise ValueError(
                f"'accepted' of {line.where} must be at most the number of drafted tokens, "
                f"{len(step.logprobs)}, got {step.accepted}"
            )
        if step.lookup is not None and step.lookup.accepted > step.lookup.tokens:
            raise ValueError(
                f"'lookup.accepted' of {line.where} must be at most 'lookup.tokens', "
                f"{step.lookup.tokens}, got {step.lookup.accepted}"
            )
        lines.append(step)
        if len(lines) > most:
            raise ValueError(f"logs of steps must have at most {MOST_STEPS:,} steps, got more")
    if not lines:
        raise ValueError(f"the log of steps {str(path)!r} must have a step, got none")
    return lines


def _check_positions(lines: Sequence[StepLine], path: Path) -> None:
    """Check that a step begins where the one before it ended."""
    last: dict[str, StepLine] = {}
    found: Counter[bool] = Counter()
    wrong: tuple[StepLine, StepLine] | None = None
    for line in lines:
        before = last.get(line.request)
        last[line.request] = line
        if before is None:
            continue
        fits = before.may_emit(line.position - before.position)
        found[fits] += 1
        if not fits and wrong is None:
            wrong = before, line
    if wrong is None or found[False] <= _MOST_ODD * found.total():
        return
    before, after = wrong
    raise ValueError(
        f"steps of the log {str(path)!r} must continue one another: request {before.request!r} "
        f"accepted {before.accepted} tokens at position {before.position}, so that with the "
        f"target's own token the next step is at {before.position + before.accepted + 1}, got "
        f"{after.position}; so it is in {found[False]:,} of {found.total():,} steps"
    )


def make_steps(lines: Sequence[StepLine], names: Sequence[str]) -> Steps:
    """Make arrays of steps.

    Args:
        lines: at least one step.
        names: name of each step's request.
    """
    requests = tuple(dict.fromkeys(names))
    index = {name: number for number, name in enumerate(requests)}
    request = np.array([index[name] for name in names], dtype=np.int64)
    position = np.array([line.position for line in lines], dtype=np.int64)
    order = np.lexsort((position, request))
    ordered = [lines[place] for place in order]
    width = max(len(line.logprobs) for line in ordered)
    log_probs = np.full((len(ordered), width), np.nan)
    for row, line in zip(log_probs, ordered, strict=True):
        row[: len(line.logprobs)] = np.minimum(line.logprobs, 0.0)
    lookups = [line.lookup or LookupLine(match=0, tokens=0, accepted=0) for line in ordered]

    def whole(values: Iterable[int]) -> np.ndarray:
        return np.array(list(values), dtype=np.int64)

    def seconds(values: Iterable[float | None]) -> np.ndarray:
        return np.array([np.nan if value is None else value for value in values])

    request, position = request[order], position[order]
    emitted = _emitted(request, position, ordered)
    accepted = whole(line.accepted for line in ordered)
    looked_up = whole(lookup.tokens for lookup in lookups)
    lookup_accepted = whole(lookup.accepted for lookup in lookups)
    told = whole(-1 if lookup.judged is None else lookup.judged for lookup in lookups)
    by_text = _judged(looked_up, lookup_accepted, emitted)
    return Steps(
        requests=requests,
        request=request,
        position=position,
        context=whole(line.context for line in ordered),
        batch=whole(line.batch for line in ordered),
        log_probs=log_probs,
        judged=_judged(whole(len(line.logprobs) for line in ordered), accepted, emitted),
        accepted=accepted,
        emitted=emitted,
        match=whole(lookup.match for lookup in lookups),
        looked_up=looked_up,
        lookup_judged=np.where(told < 0, by_text, np.clip(told, lookup_accepted, looked_up)),
        lookup_accepted=lookup_accepted,
        draft_seconds=seconds(line.draft_seconds for line in ordered),
        verify_seconds=seconds(line.verify_seconds for line in ordered),
        rows=whole(
            line.rows or line.batch * (line.verified or 1 + len(line.logprobs)) for line in ordered
        ),
    )


def _emitted(request: np.ndarray, position: np.ndarray, lines: Sequence[StepLine]) -> np.ndarray:
    """Return the tokens that each step emitted, (S,) int64, by where the next one begins."""
    # Of a request's last step, and before a gap, only what was accepted tells.
    least = np.array(
        [line.accepted + (line.verified is None or line.accepted < line.verified) for line in lines]
    )
    following = np.append(position[1:] - position[:-1], 0)
    same = np.append(request[1:] == request[:-1], False)
    fits = [
        bool(one) and line.may_emit(tokens)
        for one, line, tokens in zip(same, lines, following.tolist(), strict=True)
    ]
    return np.where(fits, following, least)


def _judged(proposed: np.ndarray, accepted: np.ndarray, emitted: np.ndarray) -> np.ndarray:
    """Return how many proposed tokens have a known fate, (S,) int64.

    A token that differs from what was emitted settles that of all after it. If all that was emitted
    was proposed, what was proposed beyond is unknown.
    """
    return np.where(accepted >= emitted, np.minimum(accepted, proposed), proposed)
