"""The batch in which answers are decoded together, as one of the engine's tasks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from eaglerl.eagle3 import BatchedSequence, DecoderBatch, TreePolicy
from eaglerl.eagle3.prompt_inputs import all_read
from eaglerl.server.tasks import Task

log = logging.getLogger("eaglerl.server")


class Receiver(Protocol):
    """What a sequence of the batch is decoded for."""

    def receive(self, kept: Sequence[int], *, beside: int) -> bool:
        """Take new tokens.

        Args:
            kept: the tokens.
            beside: number of other sequences that were decoded meanwhile.

        Returns:
            Whether the sequence is to end, if it has not.
        """

    def fail(self, error: Exception) -> None:
        """Note that the sequence has ended with an error."""


class SharedBatch(Task):
    """Runs the cycles of a batch and hands its tokens on.

    A sequence that fails does so alone. If the whole batch fails, or all that are in it, the next
    ones are decoded by a new one, whose caches and policies know nothing of the failure.
    """

    def __init__(self, new_batch: Callable[[], DecoderBatch]) -> None:
        """Open the first batch.

        Args:
            new_batch: opens a batch.
        """
        self._new_batch = new_batch
        self._batch: DecoderBatch | None = new_batch()
        self._receivers: dict[BatchedSequence, Receiver] = {}

    @property
    def ready(self) -> bool:
        """Whether there are sequences."""
        return bool(self._receivers)

    @property
    def weight(self) -> int:
        """The number of sequences."""
        return max(1, len(self._receivers))

    def start(
        self,
        receiver: Receiver,
        prompt_ids: Sequence[int],
        policy: TreePolicy | None,
        **options: Any,
    ) -> BatchedSequence:
        """Begin a sequence; there must be a free slot.

        Args:
            receiver: gets its tokens.
            prompt_ids: the prompt.
            policy: the sequence's own policy; None for the joint one.
            options: see `DecoderBatch.start`.
        """
        sequence = self._open().start(all_read(prompt_ids), policy, **options)
        self._receivers[sequence] = receiver
        return sequence

    def leave(self, sequence: BatchedSequence) -> None:
        """End a sequence, unless it has ended."""
        self._receivers.pop(sequence, None)
        if self._batch is not None:
            self._batch.leave(sequence)

    def advance(self) -> bool:
        """Read a part of the prompts and run one cycle; there is always a next step."""
        batch = self._open()
        try:
            stepped = batch.step()
        except Exception as error:
            log.exception("the batch failed")
            for receiver in self._receivers.values():
                receiver.fail(error)
            self._renew()
            return False
        failed = False
        beside = len(self._receivers) - 1
        for sequence, kept in stepped:
            failure = self._hand_on(sequence, kept, beside)
            if failure is not None:
                log.error("a request failed", exc_info=failure)
                failed = True
        if failed and not self._receivers:
            self._renew()
        return False

    def close(self, error: Exception | None) -> None:
        """End all sequences."""
        self._receivers.clear()
        if self._batch is not None:
            self._batch.close()

    def _hand_on(
        self, sequence: BatchedSequence, kept: Sequence[int], beside: int
    ) -> BaseException | None:
        """Give a sequence's tokens to its receiver; return what has failed."""
        receiver = self._receivers.get(sequence)
        if receiver is None:
            return None
        failure = sequence.error
        if failure is None:
            try:
                if receiver.receive(kept, beside=beside) or sequence.ended:
                    self.leave(sequence)
                return None
            except Exception as error:
                failure = error
        self.leave(sequence)
        receiver.fail(failure if isinstance(failure, Exception) else RuntimeError(repr(failure)))
        return failure

    def _open(self) -> DecoderBatch:
        if self._batch is None:
            self._batch = self._new_batch()
        return self._batch

    def _renew(self) -> None:
        """Forget the batch; its memory is free before there is a new one."""
        self._receivers.clear()
        self._batch = None
