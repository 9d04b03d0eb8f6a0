"""Counts of what was chosen, which vLLM's /metrics shows."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from eaglerl.eagle3.tree.prompt_lookup import common_length

if TYPE_CHECKING:
    from eaglerl_vllm.adaptive_proposer import Planned

FOLDER = "EAGLERL_VLLM_STATISTICS"
SOURCES = ("head", "lookup", "none")
# Chains of more tokens are counted together.
_LENGTHS = 16
_NAMES = (
    "steps",
    "regret",
    "rate",
    *(f"{kind}_{source}" for kind in ("chains", "drafted", "accepted") for source in SOURCES),
    *(f"length_{length}" for length in range(_LENGTHS + 1)),
    "length_sum",
)
_PLACES = {name: place for place, name in enumerate(_NAMES)}


def share_folder() -> None:
    """Choose the folder of this process and its children, unless a parent has."""
    if FOLDER not in os.environ:
        folder = os.environ[FOLDER] = tempfile.mkdtemp(prefix="eaglerl-vllm-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


class Statistics:
    """Counts, in a file that the process which serves /metrics reads."""

    def __init__(self) -> None:
        """Begin at zero."""
        folder = os.environ.get(FOLDER)
        if folder is None:
            self._counts = np.zeros(len(_NAMES))
            return
        path = Path(folder) / f"{os.getpid()}-{id(self):x}.counts"
        self._counts = np.memmap(path, np.float64, "w+", shape=(len(_NAMES),))

    def observe(self, planned: Planned, tokens: Sequence[int], price: float) -> None:
        """Count a request's step.

        Args:
            planned: what was drafted and verified.
            tokens: what it emitted.
            price: what verifying a token costs, in tokens.
        """
        accepted = min(common_length(planned.chain, tokens), len(tokens) - 1)
        length, counts = len(planned.chain), self._counts
        counts[_PLACES[f"chains_{planned.source}"]] += 1
        counts[_PLACES[f"drafted_{planned.source}"]] += length
        counts[_PLACES[f"accepted_{planned.source}"]] += accepted
        counts[_PLACES[f"length_{min(length, _LENGTHS)}"]] += 1
        counts[_PLACES["length_sum"]] += length
        # The best choice among those whose result is known: each chain up to its first error.
        known = (planned.drafted, planned.lookup.token_ids)
        best = max(min(common_length(chain, tokens), planned.room) for chain in known) * (
            1.0 - price
        )
        counts[_PLACES["regret"]] += max(best, 0.0) - (accepted - price * length)

    def end_step(self, rate: float) -> None:
        """Count a step.

        Args:
            rate: tokens per second of the last steps.
        """
        self._counts[_PLACES["steps"]] += 1
        self._counts[_PLACES["rate"]] = rate

    def value(self, name: str) -> float:
        """Return a count by its name."""
        return float(self._counts[_PLACES[name]])


class Collector:
    """Reads the counts of all processes for a Prometheus registry."""

    def collect(self) -> Iterator[object]:
        """Yield the metrics."""
        total = np.zeros(len(_NAMES))
        folder = os.environ.get(FOLDER)
        files = sorted(Path(folder).glob("*.counts")) if folder else []
        if not files:
            return
        for path in files:
            counts = np.fromfile(path, np.float64)
            if len(counts) == len(_NAMES):
                total += counts
        value = {name: float(total[place]) for name, place in _PLACES.items()}
        yield CounterMetricFamily(
            "eaglerl:steps", "Steps in which eaglerl chose the chains.", value=value["steps"]
        )
        for kind, text in (
            ("chains", "Chains of requests by the source of their tokens."),
            ("drafted", "Verified draft tokens by their source."),
            ("accepted", "Accepted draft tokens by their source."),
        ):
            family = CounterMetricFamily(f"eaglerl:{kind}", text, labels=["source"])
            for source in SOURCES:
                family.add_metric([source], value[f"{kind}_{source}"])
            yield family
        buckets, count = [], 0.0
        for length in range(_LENGTHS):
            count += value[f"length_{length}"]
            buckets.append((str(float(length)), count))
        count += value[f"length_{_LENGTHS}"]
        yield HistogramMetricFamily(
            "eaglerl:chain_length",
            "Verified draft tokens of a request in a step.",
            buckets=[*buckets, ("+Inf", count)],
            sum_value=value["length_sum"],
        )
        yield GaugeMetricFamily(
            "eaglerl:tokens_per_second",
            "Tokens per second of the last steps, without prompts, as the policy reckons.",
            value=value["rate"],
        )
        # A chain that is right may be worth less than its rows: this falls as well as rises.
        yield GaugeMetricFamily(
            "eaglerl:regret_tokens",
            "Tokens that the best chain in hindsight would have gained over the chosen ones.",
            value=value["regret"],
        )
