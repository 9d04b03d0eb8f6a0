"""The metrics that vLLM's /metrics shows, read from the counts of all processes.

Every process of vLLM imports this, turned on or not: nothing of eaglerl is imported here.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

FOLDER = "EAGLERL_VLLM_STATISTICS"
SOURCES = ("head", "lookup", "none")
# Chains of more tokens are counted together.
LENGTHS = 16
NAMES = (
    "steps",
    "regret",
    "rate",
    *(f"{kind}_{source}" for kind in ("chains", "drafted", "accepted") for source in SOURCES),
    *(f"length_{length}" for length in range(LENGTHS + 1)),
    "length_sum",
)
PLACES = {name: place for place, name in enumerate(NAMES)}


def share_folder() -> None:
    """Choose the folder of this process and its children, unless a parent has."""
    if FOLDER not in os.environ:
        folder = os.environ[FOLDER] = tempfile.mkdtemp(prefix="eaglerl-vllm-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


class Collector:
    """Reads the counts of all processes for a Prometheus registry."""

    def collect(self) -> Iterator[object]:
        """Yield the metrics."""
        total = np.zeros(len(NAMES))
        folder = os.environ.get(FOLDER)
        files = sorted(Path(folder).glob("*.counts")) if folder else []
        if not files:
            return
        for path in files:
            counts = np.fromfile(path, np.float64)
            if len(counts) == len(NAMES):
                total += counts
        value = {name: float(total[place]) for name, place in PLACES.items()}
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
        for length in range(LENGTHS):
            count += value[f"length_{length}"]
            buckets.append((str(float(length)), count))
        count += value[f"length_{LENGTHS}"]
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
