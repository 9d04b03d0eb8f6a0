"""One sequence that is generated cycle by cycle; `generate` runs it to the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Self

import torch
from transformers.generation import BaseStreamer

from eaglerl._renamed import renamed_arguments
from eaglerl.eagle3.continuation import Continuation
from eaglerl.eagle3.fair_lock import FairLock
from eaglerl.eagle3.policy import TreePolicy
from eaglerl.eagle3.session_factory import SessionFactory
from eaglerl.eagle3.stopping import StoppingRules
from eaglerl.eagle3.verifier import Verifier


class Generation(Continuation):
    """A prompt and its continuation so far, which `advance` extends.

    A generation holds its own caches. They go back to the decoder when the text ends, on `close`,
    at the end of a `with` block, or when the generation is garbage collected. Any number of
    generations may run at once.

    Attributes:
        session: the session that decodes; its `tree` is the one that the last cycle verified.
        token_ids: prompt and output so far.
        cycles: results of the cycles so far.
        prefill_seconds: time to read the prompt and choose the first token.
        decode_seconds: time of the cycles so far, the policy's included.
    """

    @renamed_arguments(decoder="sessions")
    def __init__(
        self,
        sessions: SessionFactory,
        prompt_ids: list[int],
        rules: StoppingRules,
        policy: TreePolicy,
        verifier: Verifier,
        *,
        top_logprobs: int | None = None,
    ) -> None:
        """Take caches and reset the policy; nothing is decoded yet.

        Args:
            sessions: opens the session that decodes.
            prompt_ids: at least one token id.
            rules: decide when the sequence ends.
            policy: chooses the tree of every cycle.
            verifier: greedy or sampling.
            top_logprobs: record the log-probability of every token, and those of this many most
                likely tokens at its position; None records nothing.

        Raises:
            ValueError: `top_logprobs` is negative, or another generation uses the policy and it
                cannot fork.
        """
        super().__init__(prompt_ids, rules, top_logprobs)
        # Holding the lock, so that the time of other generations is not counted.
        with sessions.target.turns as waited:
            started = time.perf_counter()
            self.session = sessions.new_session(verifier, len(prompt_ids) + rules.limit, policy)
            try:
                # The session has the policy, or a fork of it.
                assert self.session.tree_policy is not None
                self.session.tree_policy.reset()
                self.session.begin_prompt(prompt_ids)
            except BaseException:
                self.session.close("it failed to begin")
                raise
            self.prefill_seconds = time.perf_counter() - started
        self.session.waited_seconds = waited
        self.session.logprobs = self._logprobs
        self._policy_seconds = 0.0
        # Two threads may call `advance` of one generation; they take turns.
        self._own_turn = FairLock()
        self._began = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the caches back, if they were not yet; the text so far stays."""
        self.session.close("the generation was closed")

    @property
    def policy_seconds(self) -> float:
        """The policy's share of `decode_seconds`; see `StepResult`."""
        return self._policy_seconds + self.session.policy_time.seconds

    @property
    def waited_seconds(self) -> float:
        """Time spent waiting while other generations of the target had their turn."""
        return self.session.waited_seconds

    def read_chunk(self, most_rows: int | None = None) -> bool:
        """Read one chunk of the prompt unless it is the last one.

        A caller that runs several sequences calls this before `advance` until it returns False.
        Then a long prompt delays the other sequences by one chunk at a time.

        Args:
            most_rows: most tokens of a chunk; None for the target's `chunk_size`.

        Returns:
            Whether a chunk was read. If not, `advance` reads the rest, or runs a cycle.

        Raises:
            ValueError: `most_rows` is less than 1.
        """
        if most_rows is not None and most_rows < 1:
            raise ValueError(f"most_rows must be at least 1, got {most_rows}")
        with self._own_turn as waited:
            self.session.waited_seconds += waited
            rows = most_rows or self.session.target.chunk_size
            if self._began or self.session.unread <= rows:
                return False
            self._read_chunk(most_rows)
            return True

    def advance(self) -> tuple[int, ...]:
        """Read what is left of the prompt, or run one cycle.

        Returns:
            The tokens added to the output: one after the prompt, at least one after a cycle.

        Raises:
            ValueError: the sequence has ended, its caches were given back, or the policy's tree
                does not fit.
        """
        with self._own_turn as waited:
            self.session.waited_seconds += waited
            if self.finish_reason is not None:
                raise ValueError(f"the sequence has ended: {self.finish_reason}")
            self.session.check_open()
            try:
                kept = self._cycle() if self._began else self._prefill()
            except BaseException as error:
                # The session may have tokens that the output lacks; going on would lose them.
                if len(self.session.token_ids) not in (0, len(self.token_ids)):
                    self.session.close(f"it failed with {type(error).__name__}")
                raise
            return kept

    def run(
        self, streamer: BaseStreamer | None = None, shown_ids: Sequence[int] | None = None
    ) -> None:
        """Run the sequence to its end.

        Args:
            streamer: a transformers streamer.
            shown_ids: the prompt as the streamer gets it; by default the tokens that are read.

        Raises:
            ValueError: see `advance`.
        """
        if streamer is not None:
            streamer.put(torch.tensor([self.token_ids if shown_ids is None else shown_ids]))
        while self.finish_reason is None:
            kept = self.advance()
            if streamer is not None:
                # One at a time, as transformers does: a streamer may count its calls.
                for token in kept:
                    streamer.put(torch.tensor([token]))
        if streamer is not None:
            streamer.end()

    def _prefill(self) -> tuple[int, ...]:
        while (first := self._read_chunk()) is None:
            pass
        self._began = True
        return self._keep((first,))

    def _read_chunk(self, most_rows: int | None = None) -> int | None:
        with self.session.target.turns as waited:
            self.session.waited_seconds += waited
            started = time.perf_counter()
            first = self.session.read_chunk(most_rows)
            self.prefill_seconds += time.perf_counter() - started
        return first

    def _cycle(self) -> tuple[int, ...]:
        with self.session.target.turns as waited:
            self.session.waited_seconds += waited
            started = time.perf_counter()
            result = self.session.step(most_tokens=self.tokens_left)
            self._policy_seconds += result.policy_seconds
            self.cycles.append(result)
            kept = self._keep(result.token_ids)
            self.decode_seconds += time.perf_counter() - started
            return kept

    def _keep(self, emitted: tuple[int, ...]) -> tuple[int, ...]:
        kept = self._append(emitted)
        if self.finish_reason is not None:
            self.session.close(f"the sequence has ended: {self.finish_reason}")
        return kept
