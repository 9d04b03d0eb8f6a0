"""A live session: one prompt in one or two modes, run cycle by cycle under a page's control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from eaglerl.eagle3 import Generation, TreePolicy
from eaglerl.eagle3.prompt_inputs import all_read
from eaglerl.server.completion import PROMPT_ROWS
from eaglerl.server.cycle_events import CycleDescriber
from eaglerl.server.modes import Mode
from eaglerl.server.plain_reference import PlainReference
from eaglerl.server.service import Service
from eaglerl.server.tasks import Task
from eaglerl.server.text import IncrementalText


@dataclass(frozen=True, slots=True)
class LiveEvent:
    """An event for the page.

    Attributes:
        name: "begin", "cycle" or "finished" of one lane, "state", or "end" of the session.
        content: JSON values.
    """

    name: str
    content: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LiveFailed:
    """The session has failed."""

    error: Exception


@dataclass(eq=False)
class _Lane:
    """One of the texts that are shown side by side.

    Attributes:
        mode: its mode.
        text: its text so far.
        credits: number of single cycles that were requested and have not run yet.
        over: whether the text has ended.
        policy: the policy that chooses its trees.
        generation: its generation; None before its first step.
    """

    mode: Mode
    text: IncrementalText
    credits: int = 0
    over: bool = False
    policy: TreePolicy | None = None
    generation: Generation | None = None

    @property
    def cycles(self) -> int:
        """Number of cycles so far."""
        return 0 if self.generation is None else len(self.generation.cycles)

    @property
    def began(self) -> bool:
        """Whether the prompt has been read."""
        return self.generation is not None and bool(self.generation.new_ids)

    @property
    def spent(self) -> float:
        """Seconds of decoding; -1 before the prompt has been read."""
        generation = self.generation
        if generation is None or not generation.new_ids:
            return -1.0
        return generation.decode_seconds


@dataclass
class LiveSession(Task):
    """Decodes the same prompt in every lane; the lane that has used the least time is next.

    Both lanes have therefore had about the same time at any moment, and the faster one is ahead in
    its text. The speed of plain decoding is measured alongside. A session does not join the batch
    of the requests but has its turns beside it: in shared passes both lanes would advance cycle by
    cycle, whatever their drafts cost, and no pass would have a time of one lane alone.

    Attributes:
        service: the service with the decoder.
        modes: modes of the lanes.
        prompt_ids: token ids of the prompt.
        emit: called with every event.
        sampling: options of `SpeculativeDecoder.start`.
        running: whether cycles follow one another without being requested.
    """

    service: Service
    modes: Sequence[Mode]
    prompt_ids: Sequence[int]
    emit: Callable[[LiveEvent | LiveFailed], None]
    sampling: dict[str, Any]
    running: bool = True
    _lanes: list[_Lane] = field(init=False)

    # Tasks are compared and hashed by identity, not by their fields.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def __post_init__(self) -> None:
        tokenizer = self.service.decoder.tokenizer
        self._describer = CycleDescriber(tokenizer)
        self._lanes = [_Lane(mode, IncrementalText(tokenizer)) for mode in self.modes]
        self._plain = PlainReference(self.service.decoder, self.prompt_ids, self.sampling)

    def control(self, action: str) -> None:
        """Run, pause, or run one cycle of every lane that has not ended; for `Engine.tell`."""
        self.running = action == "run"
        for lane in self._lanes:
            lane.credits = lane.credits + 1 if action == "step" and not lane.over else 0
        self.emit(LiveEvent("state", {"running": self.running}))

    @property
    def ready(self) -> bool:
        """Whether a lane may continue."""
        return any(self._may_continue(lane) for lane in self._lanes)

    def advance(self) -> bool:
        """Read a part of a lane's prompt or run a cycle; return whether all lanes have ended."""
        if self._plain.due(sum(lane.cycles for lane in self._lanes)):
            self._plain.advance(PROMPT_ROWS)
            return False
        place, lane = min(
            ((i, lane) for i, lane in enumerate(self._lanes) if self._may_continue(lane)),
            key=lambda item: item[1].spent,
        )
        generation = self._open(lane) if lane.generation is None else lane.generation
        if generation.read_chunk(PROMPT_ROWS):
            return False
        if not lane.began:
            self._begin(place, lane)
        else:
            lane.credits = max(0, lane.credits - 1)
            self._cycle(place, lane)
        reason = generation.finish_reason
        if reason is not None:
            lane.over, lane.credits = True, 0
            rest = {"lane": place, "reason": reason, "text": lane.text.finish()}
            self.emit(LiveEvent("finished", rest))
        if not all(lane.over for lane in self._lanes):
            return False
        self.emit(LiveEvent("end", {}))
        return True

    def close(self, error: Exception | None) -> None:
        """Give policies and caches back."""
        self._plain.close()
        for lane in self._lanes:
            if lane.generation is not None:
                lane.generation.close()
            if lane.policy is not None:
                lane.mode.give_back(lane.policy)
            lane.policy = lane.generation = None
        if error is not None:
            self.emit(LiveFailed(error))

    def _may_continue(self, lane: _Lane) -> bool:
        return not lane.over and (self.running or lane.credits > 0 or not lane.began)

    def _open(self, lane: _Lane) -> Generation:
        lane.policy = lane.mode.take()
        decoder = self.service.decoder
        lane.generation = decoder.start(all_read(self.prompt_ids), lane.policy, **self.sampling)
        return lane.generation

    def _begin(self, place: int, lane: _Lane) -> None:
        assert lane.generation is not None
        (first,) = lane.generation.advance()
        tokens = [{"id": first, "text": lane.text.push(first), "source": "target"}]
        seconds = lane.generation.prefill_seconds
        content = {"lane": place, "tokens": tokens, "prefill_seconds": seconds}
        self.emit(LiveEvent("begin", content))

    def _cycle(self, place: int, lane: _Lane) -> None:
        assert lane.generation is not None
        before = lane.generation.policy_seconds
        kept = lane.generation.advance()
        policy = lane.generation.policy_seconds - before
        content = self._describer.cycle(lane.generation, kept, lane.text, policy)
        plain = self._plain.tokens_per_second
        content["answers"] = self.service.engine.answers
        totals = content["totals"]
        totals["times_plain"] = None if plain is None else totals["tokens_per_second"] / plain
        self.emit(LiveEvent("cycle", {"lane": place, **content}))
