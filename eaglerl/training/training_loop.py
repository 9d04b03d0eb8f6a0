"""The loop over optimizer steps: schedule, checkpoints, validation, interruption."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice

import torch

from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.runs.checkpoints import resuming
from eaglerl.runs.head_run import HeadRun
from eaglerl.training.batches import batch_order, pack
from eaglerl.training.features import FeatureDataset
from eaglerl.training.optimizer import DraftOptimizer, learning_rate_scale
from eaglerl.training.train_options import TrainOptions
from eaglerl.training.ttt import TrainingTimeTest
from eaglerl.training.validation import DraftMetrics, MetricSums, validate

Progress = Callable[[str, float], None]

LOG_STEPS = 10


class TrainingLoop:
    """A run from its newest checkpoint, or from the start, to its end.

    Every random draw follows from the seed and the step, so a checkpoint holds no generator state,
    and a resumed run takes the same steps as an uninterrupted one.
    """

    def __init__(
        self,
        head: Eagle3DraftHead,
        ttt: TrainingTimeTest,
        train: FeatureDataset,
        held_out: FeatureDataset,
        options: TrainOptions,
        folder: HeadRun,
        report: Progress,
    ) -> None:
        """Prepare the loop.

        Args:
            head: the head to train, fp32, in place.
            ttt: its training-time test.
            train: sequences to train on.
            held_out: sequences to validate on.
            options: how to train.
            folder: where the run's files go.
            report: called with a sentence and the fraction done.
        """
        self._head = head
        self._ttt = ttt
        self._train = train
        self._held_out = held_out
        self._options = options
        self._folder = folder
        self._report = report
        self._optimizer = DraftOptimizer(head, learning_rate=options.learning_rate)
        self._total_steps = options.steps or _steps_of_epochs(train.draft_rows, options)
        self._step = 0
        self._seconds = 0.0

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self._step

    def run(self) -> DraftMetrics:
        """Train to the end, and return the metrics on all held-out rows.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; a checkpoint has been saved.
        """
        self._resume()
        self._folder.open_logs(self._step)
        order = batch_order(self._train.draft_rows, self._options.batch_tokens, self._options.seed)
        started, saved = time.monotonic() - self._seconds, time.monotonic()
        sums = MetricSums(self._options.ttt_steps)
        with _deferred_interrupt() as interrupted:
            for indices in islice(order, self._step, None):
                if self._fraction_done() >= 1:
                    break
                self._train_step(indices, sums)
                self._seconds = time.monotonic() - started
                if self._step % self._options.validate_every == 0 and not interrupted.is_set():
                    self._validate(self._options.validation_rows)
                due = time.monotonic() - saved > 60 * self._options.checkpoint_minutes
                if due or interrupted.is_set():
                    self._save()
                    saved = time.monotonic()
                if interrupted.is_set():
                    raise KeyboardInterrupt
            self._save()
        # The last point of the curve is measured on the same rows as the others.
        if self._step % self._options.validate_every:
            self._validate(self._options.validation_rows)
        metrics = self._validate(len(self._held_out))
        self._head.save_pretrained(self._folder.head_path, dtype=self._options.head_torch_dtype)
        return metrics

    def _fraction_done(self, ahead: int = 0) -> float:
        """Return the share of the training that is done, ``ahead`` steps from now."""
        by_steps = (self._step + ahead) / self._total_steps
        if self._options.max_minutes is None:
            return by_steps
        return max(by_steps, self._seconds / (60 * self._options.max_minutes))

    def _train_step(self, indices: list[int], sums: MetricSums) -> None:
        options = self._options
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + self._step)
        batch = pack([self._train[index] for index in indices], options.ttt_steps)
        result = self._ttt(batch, deep_fraction=options.deep_fraction, generator=generator)
        result.loss.backward()
        scale = learning_rate_scale(
            self._fraction_done(ahead=1), options.warmup, options.final_learning_rate
        )
        norm = self._optimizer.step(scale)
        self._step += 1
        sums.add(result)
        if self._step % LOG_STEPS == 0:
            metrics = sums.take()
            values = {"learning_rate": options.learning_rate * scale, "grad_norm": norm}
            values["seconds"] = self._seconds
            self._folder.log(self._step, "train", {**asdict(metrics), **values})
        self._report(
            f"step {self._step} of {self._total_steps}, loss {float(result.step_losses[0]):.3f}",
            min(1.0, self._fraction_done()),
        )

    def _validate(self, rows: int) -> DraftMetrics:
        """Measure, log and draw."""
        indices = range(min(rows, len(self._held_out)))
        metrics = validate(self._ttt, self._held_out, indices, self._options.batch_tokens)
        values = {**asdict(metrics), "rows": len(indices), "seconds": self._seconds}
        self._folder.log(self._step, "validation", values)
        self._folder.plot()
        return metrics

    def _save(self) -> None:
        tensors = {f"head.{name}": value for name, value in self._head.state_dict().items()}
        state = self._optimizer.state_tensors()
        tensors |= {f"optimizer.{name}": value for name, value in state.items()}
        self._folder.checkpoints.save(self._step, tensors, {"seconds": self._seconds})

    def _resume(self) -> None:
        checkpoint = self._folder.checkpoints.newest()
        if checkpoint is None:
            return
        self._step, self._seconds = checkpoint.step, checkpoint.info["seconds"]
        parts = {
            prefix: {
                name.removeprefix(prefix): value
                for name, value in checkpoint.tensors.items()
                if name.startswith(prefix)
            }
            for prefix in ("head.", "optimizer.")
        }
        with resuming(checkpoint):
            self._head.load_state_dict(parts["head."])
            self._optimizer.load_state_tensors(parts["optimizer."])


def _steps_of_epochs(draft_rows: list[int], options: TrainOptions) -> int:
    """Return how many batches the epochs of the options take."""
    wanted = options.epochs * sum(draft_rows)
    seen = 0
    for steps, batch in enumerate(batch_order(draft_rows, options.batch_tokens, options.seed), 1):
        seen += sum(draft_rows[index] for index in batch)
        if seen >= wanted:
            return steps
    raise AssertionError("the order of batches does not end")


@contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets; a second Ctrl-C interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
