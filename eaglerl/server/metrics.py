"""Metrics for Prometheus.

A metric that vLLM also has keeps vLLM's name (``vllm:...``), so that its dashboards work. Metrics
about policies are named ``eaglerl:...``.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3 import StepResult
from eaglerl.eagle3.continuation import Continuation
from eaglerl.server.tasks import WithdrawnError

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
# Number of cycles that a rate is computed over.
_RECENT_CYCLES = 200
# Clients may ask for any constant tree: all of them are counted under this label.
_TREES = "tree:T/D/K"


class Metrics:
    """Metrics of one server, in their own registry.

    Attributes:
        registry: the registry.
    """

    def __init__(
        self, model_name: str, mode_names: Collection[str], cost: CostTable | None = None
    ) -> None:
        """Set up.

        Args:
            model_name: label of all metrics.
            mode_names: modes that are counted under their own label.
            cost: cost table to compare the cycles' times with.
        """
        self.registry = CollectorRegistry()
        self._labels = {"model_name": model_name}
        self._mode_names = frozenset(mode_names)
        self._cost = cost
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT_CYCLES)
        self._costs: deque[tuple[float, float]] = deque(maxlen=_RECENT_CYCLES)
        self._arms: dict[str, tuple[str, ...]] = {}
        self._make_request_metrics()
        self._make_cycle_metrics()

    def watch(self, load: Callable[[], Mapping[str, float]]) -> None:
        """Expose the numbers of requests and live sessions.

        Args:
            load: returns `Engine.load`, with `Engine.answers` and `Engine.usage` as well.
        """
        for name, key, help_text in (
            ("vllm:num_requests_running", "active", "Requests at work."),
            ("vllm:num_requests_waiting", "waiting", "Requests in the queue."),
            ("eaglerl:live_sessions", "live", "Sessions of the live view."),
            ("eaglerl:sequences", "answers", "Answers that are decoded together."),
            (
                "vllm:kv_cache_usage_perc",
                "usage",
                "Share of the tokens in flight that the answers at work have reserved; 1 is all.",
            ),
        ):
            gauge = Gauge(name, help_text, self._labels, registry=self.registry)
            gauge.labels(**self._labels).set_function(partial(_reading, load, key))

    def request(self, mode: str, prompt_tokens: int) -> RequestMetrics:
        """Begin to count a request.

        Args:
            mode: its mode of drafting.
            prompt_tokens: number of tokens of its prompt.
        """
        return RequestMetrics(self, mode, prompt_tokens)

    def expose(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)

    def cycle(self, mode: str, result: StepResult, beside: int) -> None:
        """Count a cycle.

        Args:
            mode: its mode of drafting.
            result: its result.
            beside: number of other sequences that were decoded in it.
        """
        mode = mode if mode in self._mode_names else _TREES
        labels = self._labels | {"mode": mode}
        drafted = result.rows - 1
        if drafted:
            self._drafts.labels(**self._labels).inc()
        self._drafted.labels(**self._labels).inc(drafted)
        self._accepted.labels(**self._labels).inc(result.accepted)
        for position in range(result.accepted):
            self._accepted_at.labels(**self._labels, position=position).inc()
        self._acceptance_length.labels(**labels).observe(result.accepted + 1)
        self._in_vain.labels(**labels).inc(drafted - result.accepted)
        for part, seconds in (
            ("draft", result.draft_seconds),
            ("verify", result.verify_seconds),
            ("policy", result.policy_seconds),
        ):
            self._part_seconds.labels(**labels, part=part).inc(seconds)
        self._recent.append((len(result.token_ids), result.seconds))
        self._set_arm(mode, result)
        # The table has the costs of passes of one sequence.
        if not beside:
            self._compare_cost(result)

    def _set_arm(self, mode: str, result: StepResult) -> None:
        params = result.params
        arm = tuple(map(str, (params.total_tokens, params.depth, params.top_k)))
        before = self._arms.get(mode)
        if before == arm:
            return
        name = self._labels["model_name"]
        if before is not None:
            self._arm.remove(name, mode, *before)
        self._arm.labels(name, mode, *arm).set(1)
        self._arms[mode] = arm

    def _compare_cost(self, result: StepResult) -> None:
        """Record measured and expected seconds, if the cost table covers the cycle."""
        if self._cost is None or result.rows > self._cost.total_tokens[-1]:
            return
        params, context = result.params, result.context_length - len(result.token_ids)
        expected = float(self._cost.verify_seconds(result.rows, context))
        if params.total_tokens > 1:
            if params.top_k not in self._cost.top_ks:
                return
            expected += float(self._cost.draft_seconds(params.depth, params.top_k, context))
        if expected > 0:
            self._costs.append((result.seconds, expected))

    def _make_request_metrics(self) -> None:
        labels = tuple(self._labels)

        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(name, text, (*labels, *more), registry=self.registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(name, text, labels, buckets=_SECONDS, registry=self.registry)

        self._prompt_tokens = counter("vllm:prompt_tokens", "Tokens of prompts that were read.")
        self._prefix_asked = counter("vllm:prefix_cache_queries", "The same.")
        self._prefix_known = counter(
            "vllm:prefix_cache_hits", "Those of them that were known from earlier texts."
        )
        self._generated = counter("vllm:generation_tokens", "Tokens of answers.")
        self._success = counter(
            "vllm:request_success", "Requests that ended, by their reason.", "finished_reason"
        )
        self._failures = counter("eaglerl:request_failures", "Requests that failed.")
        self._first_token = seconds(
            "vllm:time_to_first_token_seconds", "From a request's arrival to its first token."
        )
        self._between_tokens = Histogram(
            "vllm:inter_token_latency_seconds",
            "From a token of an answer to the next; tokens of one cycle share its time.",
            labels,
            buckets=_TOKEN_SECONDS,
            registry=self.registry,
        )
        self._latency = seconds(
            "vllm:e2e_request_latency_seconds", "From a request's arrival to its end."
        )
        self._queue = seconds("vllm:request_queue_time_seconds", "Time in the queue.")
        self._prefill = seconds("vllm:request_prefill_time_seconds", "Time of reading prompts.")
        self._decode = seconds("vllm:request_decode_time_seconds", "Time of decoding.")
        for metric in (
            self._prompt_tokens,
            self._prefix_asked,
            self._prefix_known,
            self._generated,
            self._failures,
        ):
            metric.labels(**self._labels)
        for histogram in (
            self._first_token,
            self._between_tokens,
            self._latency,
            self._queue,
            self._prefill,
            self._decode,
        ):
            histogram.labels(**self._labels)
        for reason in ("stop", "length", "abort"):
            self._success.labels(**self._labels, finished_reason=reason)

    def _make_cycle_metrics(self) -> None:
        labels = tuple(self._labels)

        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(name, text, (*labels, *more), registry=self.registry)

        def gauge(name: str, text: str, value: Callable[[], float]) -> None:
            made = Gauge(name, text, labels, registry=self.registry)
            made.labels(**self._labels).set_function(value)

        self._drafts = counter("vllm:spec_decode_num_drafts", "Cycles that verified drafts.")
        self._drafted = counter("vllm:spec_decode_num_draft_tokens", "Drafted tokens.")
        self._accepted = counter("vllm:spec_decode_num_accepted_tokens", "Accepted tokens.")
        self._accepted_at = counter(
            "vllm:spec_decode_num_accepted_tokens_per_pos", "The same, by position.", "position"
        )
        for metric in (self._drafts, self._drafted, self._accepted):
            metric.labels(**self._labels)
        self._acceptance_length = Histogram(
            "eaglerl:acceptance_length",
            "Tokens that a cycle yielded: the accepted ones and the bonus.",
            (*labels, "mode"),
            buckets=_LENGTHS,
            registry=self.registry,
        )
        self._in_vain = counter(
            "eaglerl:drafted_in_vain_tokens", "Verified drafted tokens that were rejected.", "mode"
        )
        self._part_seconds = counter(
            "eaglerl:cycle_seconds",
            "Time of cycles: draft and verify are all of it, policy is a part of them.",
            "mode",
            "part",
        )
        self._arm = Gauge(
            "eaglerl:active_arm",
            "1 for the tree of a mode's last cycle, as it was drafted.",
            (*labels, "mode", "total_tokens", "depth", "top_k"),
            registry=self.registry,
        )
        gauge(
            "eaglerl:tokens_per_second",
            f"Tokens over seconds of the last {_RECENT_CYCLES} cycles.",
            lambda: _ratio(self._recent),
        )
        if self._cost is not None:
            gauge(
                "eaglerl:cost_error",
                f"Measured over expected seconds of the last {_RECENT_CYCLES} cycles, less 1.",
                lambda: _ratio(self._costs) - 1 if self._costs else 0.0,
            )


class RequestMetrics:
    """Metrics of one request, from its arrival on.

    Attributes:
        queue_seconds: time in the queue.
    """

    def __init__(self, metrics: Metrics, mode: str, prompt_tokens: int) -> None:
        self._metrics = metrics
        self._mode = mode
        self._prompt_tokens = prompt_tokens
        self._arrived = time.perf_counter()
        self._waiting = self._silent = True
        self._prefill = self._decode = 0.0
        self._reason = ""
        self.queue_seconds = 0.0

    def begun(self) -> None:
        """Note that decoding begins."""
        if self._waiting:
            self._waiting = False
            self.queue_seconds = time.perf_counter() - self._arrived
            self._observe(self._metrics._queue, self.queue_seconds)

    def answer(self) -> AnswerMetrics:
        """Begin to count one of the request's answers."""
        return AnswerMetrics(self)

    def _read_prompt(self, reused: int) -> None:
        """Note that the prompt has been read for an answer, which has its first token."""
        labels = self._metrics._labels
        self._metrics._prompt_tokens.labels(**labels).inc(self._prompt_tokens)
        self._metrics._prefix_asked.labels(**labels).inc(self._prompt_tokens)
        self._metrics._prefix_known.labels(**labels).inc(reused)
        if self._silent:
            self._silent = False
            self._observe(self._metrics._first_token, time.perf_counter() - self._arrived)

    def answered(self, reason: str, continuation: Continuation) -> None:
        """Note the end of one answer."""
        self._reason = reason
        self._prefill += continuation.prefill_seconds
        self._decode += continuation.decode_seconds

    def finished(self) -> None:
        """Note the end of the request."""
        self._end(self._reason)
        self._observe(self._metrics._latency, time.perf_counter() - self._arrived)
        self._observe(self._metrics._prefill, self._prefill)
        self._observe(self._metrics._decode, self._decode)

    def failed(self, error: Exception) -> None:
        """Count a failed or cancelled request."""
        if isinstance(error, WithdrawnError):
            self._end("abort")
        else:
            self._metrics._failures.labels(**self._metrics._labels).inc()

    def _end(self, reason: str) -> None:
        labels = self._metrics._labels | {"finished_reason": reason}
        self._metrics._success.labels(**labels).inc()

    def _observe(self, histogram: Histogram, value: float) -> None:
        histogram.labels(**self._metrics._labels).observe(value)


class AnswerMetrics:
    """Metrics of one answer while it is decoded."""

    def __init__(self, request: RequestMetrics) -> None:
        self._request = request
        self._cycles = 0
        # When the last tokens came; None before the first.
        self._told: float | None = None

    def advanced(self, continuation: Continuation, tokens: int, beside: int) -> None:
        """Count new tokens and the cycles since the last call.

        Args:
            continuation: the answer's sequence, with the tokens.
            tokens: their number.
            beside: number of other sequences that were decoded meanwhile.
        """
        metrics, now = self._request._metrics, time.perf_counter()
        metrics._generated.labels(**metrics._labels).inc(tokens)
        if self._told is None:
            self._request._read_prompt(getattr(continuation, "reused_tokens", 0))
        else:
            # The tokens of a cycle come together; each counts, so that the mean is one of tokens.
            for _ in range(tokens):
                metrics._between_tokens.labels(**metrics._labels).observe(
                    (now - self._told) / tokens
                )
        self._told = now
        for result in continuation.cycles[self._cycles :]:
            metrics.cycle(self._request._mode, result, beside)
        self._cycles = len(continuation.cycles)


def _reading(load: Callable[[], Mapping[str, float]], key: str) -> float:
    return load()[key]


def _ratio(pairs: Iterable[tuple[float, float]]) -> float:
    """Return the sum of the first numbers over the sum of the second ones."""
    # A copy, because the engine's thread appends meanwhile.
    kept = list(pairs)
    below = sum(second for _, second in kept)
    return sum(first for first, _ in kept) / below if below else 0.0
