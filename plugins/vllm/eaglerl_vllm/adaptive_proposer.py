"""One step's choice for all requests of a model runner."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP, Lookup
from eaglerl.policies.batch_chains import ChainState
from eaglerl_vllm.cost_file import CostFile
from eaglerl_vllm.draft_tokens import Drafted
from eaglerl_vllm.requests import KnownRequests, update_text
from eaglerl_vllm.statistics import Statistics
from eaglerl_vllm.step_log import StepLog
from eaglerl_vllm.unread_rows import Rows, UnreadRows

# Rows that a pause in drafting may keep, beside which a pass still has room for a step.
_KEPT_SHARE = 2


class StopDraftingError(Exception):
    """Ends vLLM's loop over the passes of the head."""


@dataclass(slots=True)
class Planned:
    """A request of a step.

    Attributes:
        index: its place in the batch.
        slot: its slot in the policy.
        context: tokens of its text.
        position: tokens that it has generated.
        room: most tokens of its chain.
        lookup: what was looked up.
        drafted: the head's tokens so far.
        logprobs: theirs.
        chain: the tokens to verify.
        source: where they come from.
    """

    index: int
    slot: int
    context: int
    position: int
    room: int
    lookup: Lookup
    drafted: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    chain: list[int] = field(default_factory=list)
    source: str = "none"


class AdaptiveProposer:
    """Chooses, in every step, each request's chain and where it comes from.

    The order of a step: `begin` learns from the verification and plans; vLLM's own code then runs
    the head's passes and calls `look` after each; `finish` returns the chains.
    """

    def __init__(
        self,
        policy: Any,
        slots: int,
        most_tokens: int,
        *,
        most_rows: int,
        shared_block: int | None,
        statistics: Statistics,
        step_log: StepLog | None = None,
        cost_file: CostFile | None = None,
    ) -> None:
        """Set up.

        Args:
            policy: has the methods of `BatchChainPolicy`.
            slots: most requests of a step.
            most_tokens: most tokens of a chain.
            most_rows: most rows of a pass of the head.
            shared_block: positions of a block of the KV cache, where full blocks are shared between
                requests, so that they must be read at once; None where they are not.
            statistics: counts what was chosen.
            step_log: gets every step; None for none.
            cost_file: keeps the policy's costs; None for none.
        """
        self.policy = policy
        self.most_tokens = most_tokens
        self.unread = UnreadRows()
        self._most_rows = most_rows
        self._shared_block = shared_block
        self._statistics = statistics
        self._step_log = step_log
        self._cost_file = cost_file
        self._requests = KnownRequests(slots)
        self._planned: dict[str, Planned] = {}
        self._names: list[str] = []
        self._passes = 0
        self._began = self._ended = 0.0
        self._draft_seconds = 0.0
        # Of the step at work: whether it was planned, whether the head drafts, whether it reads at
        # all, and whether the times of its passes say what passes cost.
        self._is_planned = self.working = self.drafting = self.reading = self._measured = False

    def begin(self, runner: Any, scheduler_output: Any, sampled: Tensor | list[list[int]]) -> None:
        """Learn from the step that was verified, and plan the next.

        Args:
            runner: vLLM's GPUModelRunner.
            scheduler_output: what the step has verified.
            sampled: its new tokens, of each request.
        """
        now = time.perf_counter()
        batch = runner.input_batch
        self._names = [*batch.req_ids]
        emitted, written = _emitted(runner, sampled, len(self._names))
        counts = scheduler_output.num_scheduled_tokens
        drafts = scheduler_output.scheduled_spec_decode_tokens
        decoding = all(count == 1 + len(drafts.get(name, ())) for name, count in counts.items())
        self._learn(emitted, scheduler_output.total_num_scheduled_tokens, now if decoding else None)
        for name in self._requests.leave_all_but(runner.requests):
            self.unread.forget(name)
        most = min(self.most_tokens, scheduler_output.num_spec_tokens_to_schedule)
        states = self._states(runner, emitted, written, counts, most)
        self._passes = 0
        self._is_planned = bool(states) and most > 0
        self.drafting = self._is_planned and self.policy.plan(states)
        self.reading = self.drafting or not decoding or self._must_read(runner, counts)
        self.working = True
        self._measured = decoding and self.drafting
        self._began = now

    def _learn(self, emitted: list[list[int]], rows: int, now: float | None) -> None:
        """Learn from the chains of the step before; `now` is None if its time says nothing."""
        places = {name: index for index, name in enumerate(self._names)}
        observed = 0
        price = self.policy.row_price
        seconds = 0.0 if now is None or not self._continued(places) else now - self._ended
        for name, planned in self._planned.items():
            tokens = emitted[places[name]] if name in places else []
            if not tokens or not self._is_planned:
                continue
            self.policy.observe(planned.slot, tokens)
            observed += 1
            self._statistics.observe(planned, tokens, price)
            if self._step_log is not None:
                self._step_log.add(
                    name, planned, tokens, len(self._planned), rows, seconds, self._draft_seconds
                )
        if observed:
            self.policy.end_step(rows, self._draft_seconds if seconds else 0.0, seconds)
            self._statistics.end_step(self.policy.rate)
            if self._cost_file is not None:
                self._cost_file.end_step()
        self._planned = {}

    def _continued(self, places: dict[str, int]) -> bool:
        """Return whether the engine went on at once after the last step: no request waits idly."""
        return self._ended > 0.0 and any(name in places for name in self._planned)

    def _states(
        self, runner: Any, emitted: list[list[int]], written: bool, counts: dict, most: int
    ) -> list[ChainState]:
        batch, states = runner.input_batch, []
        for index, name in enumerate(self._names):
            tokens, engine = emitted[index], runner.requests[name]
            params = engine.sampling_params
            if not tokens or params is None:
                continue
            request = self._requests.get(name)
            if request is None:
                request = self._requests.join(name)
                if request is None:
                    continue
                self.policy.join(request.slot)
            length = int(batch.num_tokens_no_spec[index])
            new = [] if written else tokens
            update_text(request, batch.token_ids_cpu[index], length, new)
            context = length + len(new)
            generated = context - engine.num_prompt_tokens
            room = _room(params, tokens, generated, runner.max_model_len - context, most)
            lookup = request.text.propose(room) if room else NO_LOOKUP
            rows = counts.get(name, 0) + self.unread[name]
            states.append(ChainState(request.slot, context, lookup, rows, room))
            self._planned[name] = Planned(index, request.slot, context, generated, room, lookup)
        return states

    def _must_read(self, runner: Any, counts: dict) -> bool:
        """Return whether rows must not be kept for later."""
        total = self.unread.total + sum(counts.values())
        if total * _KEPT_SHARE > self._most_rows:
            return True
        if self._shared_block is None:
            return False
        for index, name in enumerate(self._names):
            end = int(runner.input_batch.num_computed_tokens_cpu[index]) + counts.get(name, 0)
            begin = end - counts.get(name, 0) - self.unread[name]
            if end // self._shared_block > begin // self._shared_block:
                return True
        return False

    def rows_to_read(self, rows: Rows, rejected: Tensor | None, block_size: int) -> Rows | None:
        """Return the rows of the head's next pass; None if there is none.

        Args:
            rows: those of this step.
            rejected: (N,) number of rejected tokens of each request; None for none.
            block_size: positions of a block of the KV cache.
        """
        names = self._names[: rows.metadata.num_reqs]
        if self.reading:
            return self.unread.merge(names, rows, block_size, self._most_rows)
        self.unread.keep(names, rows, rejected)
        return None

    def look(self, drafted: Drafted) -> None:
        """Take the tokens of a pass of the head.

        Raises:
            StopDraftingError: no further pass pays.
        """
        self._passes += 1
        token_ids, logprobs = drafted.token_ids.tolist(), drafted.logprobs.tolist()
        for planned in self._planned.values():
            if self.policy.drafts(planned.slot):
                token, logprob = token_ids[planned.index], logprobs[planned.index]
                planned.drafted.append(token)
                planned.logprobs.append(logprob)
                self.policy.look(planned.slot, token, logprob)
        if self._passes == self.most_tokens or not self.policy.continues():
            raise StopDraftingError

    def select(self) -> None:
        """Choose the chains."""
        if not self._is_planned:
            return
        if self.drafting:
            self.policy.select()
        for planned in self._planned.values():
            planned.source, length = self.policy.chain(planned.slot)
            tokens = planned.drafted if planned.source == "head" else planned.lookup.token_ids
            planned.chain = [*tokens[: min(length, planned.room)]]

    def chains(self) -> list[list[int]]:
        """Return the tokens to verify of every request of the batch."""
        chains: list[list[int]] = [[] for _ in self._names]
        for planned in self._planned.values():
            chains[planned.index] = planned.chain
        return chains

    def finish(self) -> list[list[int]]:
        """End the step and return its chains."""
        self.working = False
        self._ended = time.perf_counter()
        self._draft_seconds = self._ended - self._began if self._measured else 0.0
        return self.chains()


def _emitted(
    runner: Any, sampled: Tensor | list[list[int]], requests: int
) -> tuple[list[list[int]], bool]:
    """Return the new tokens of each request, and whether the engine has written them down."""
    written = isinstance(sampled, list)
    rows = sampled if isinstance(sampled, list) else sampled.tolist()
    discarded = runner.discard_request_mask.np[:requests]
    vocabulary = runner.input_batch.vocab_size
    emitted = [
        [] if discarded[index] else [token for token in row if 0 <= token < vocabulary]
        for index, row in enumerate(rows[:requests])
    ]
    return emitted, written


def _room(params: Any, tokens: list[int], generated: int, positions: int, most: int) -> int:
    """Return the most tokens that the next step may accept; 0 if the request has ended."""
    left = most if params.max_tokens is None else params.max_tokens - generated - 1
    if not params.all_stop_token_ids.isdisjoint(tokens):
        stops = params.stop_token_ids or []
        if not params.ignore_eos or not {*stops}.isdisjoint(tokens):
            return 0
    return max(min(left, positions - 1, most), 0)
