"""What a run of the servers has measured: kept line by line, so that an interrupted run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from peer_records import check_settings

from eaglerl.evaluation.results.json_lines import LineWriter, read_whole_lines
from eaglerl.json_file import Count, Schema, Seconds

_SETTINGS, _LOADS = "settings.json", "loads.jsonl"


class StreamedAnswer(Schema):
    """See `server_load.Streamed`; times in seconds."""

    question: str
    text: str
    tokens: Count
    sent: Seconds
    arrivals: tuple[Seconds, ...]

    @property
    def first(self) -> float:
        """Seconds from the request to the first piece of text."""
        return self.arrivals[0]

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces of text, each of one token or of those of a cycle."""
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]

    @property
    def per_token(self) -> float | None:
        """Mean seconds of a token after the first piece; None without any."""
        if self.tokens < 2 or len(self.arrivals) < 2:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / (self.tokens - 1)


class Load(Schema):
    """What one runner did with the questions of one concurrency.

    Attributes:
        runner: its name.
        concurrency: requests at once.
        repeat: from 0.
        session: number of the process that measured it, from 0.
        seconds: from the first request to the end of the last answer.
        answers: one per question.
    """

    runner: str
    concurrency: Count
    repeat: Count
    session: Count
    seconds: Seconds
    answers: tuple[StreamedAnswer, ...]

    @property
    def key(self) -> tuple[str, int, int]:
        """Runner, concurrency and repeat."""
        return self.runner, self.concurrency, self.repeat

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all answers over the time of all."""
        return sum(answer.tokens for answer in self.answers) / self.seconds


class LoadRecords:
    """The records of a run, in a folder; the caller holds its lock."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open a run, or begin it.

        Args:
            folder: of this run.
            settings: what all its measurements have in common.

        Raises:
            ValueError: the folder's measurements were made with other settings, or are damaged.
        """
        check_settings(folder / _SETTINGS, settings)
        self.loads: dict[tuple[str, int, int], Load] = {
            load.key: load for _, load in read_whole_lines(folder / _LOADS, Load, "loads")
        }
        self.session = 1 + max((load.session for load in self.loads.values()), default=-1)
        self._lines = LineWriter(folder / _LOADS)

    def add(self, load: Load) -> None:
        """Keep a load."""
        self._lines.append(load.model_dump())
        self.loads[load.key] = load

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
