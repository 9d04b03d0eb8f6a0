"""Chooses how many tokens SGLang drafts for a batch: the ones that pay, learned while serving.

The batch's tokens per second are maximised. A request gets 1 + the sum of the survivals of its
drafted tokens from a step; a survival is the probability that the target accepts a token and all
before it. Survivals are learned from the accepted counts, the steps' seconds from a table or the
clock. A further token is drafted where its survival is worth more than rate * its seconds.

    python THIS_FILE                 tests itself
    python THIS_FILE --config        prints the tiers to allow, for --speculative-adaptive-config
    python THIS_FILE --package DIR   writes a package to install beside SGLang
"""

from __future__ import annotations

import bisect
import json
import logging
import math
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

# <values>
MADE_FROM: dict[str, Any] = {"engine": "sglang", "version": "0.5.23"}
# Seconds of a step: "seconds"[i][j] of "batch_sizes"[i] requests with "steps"[j] drafted tokens.
COSTS: dict[str, Any] | None = None
# Survival of the first drafted tokens, as long as nothing is learned.
SURVIVALS: tuple[float, ...] = (0.7, 0.49, 0.343)
# </values>

logger = logging.getLogger(__name__)

# Newest requests whose outcomes count, and the most that one batch replaces.
_MEMORY, _MOST_REPLACED = 128.0, 0.2
# Requests that the belief before any outcome counts for.
_BELIEF = 4.0
# What is not seen is forgotten in about 1,000 batches.
_UNSEEN = 0.999
# Another number must promise this much more, as changing costs something and estimates are noisy.
_MARGIN = 0.01
# Tiers that seem worse are tried for a few batches in a row, for 0.5 % of the tokens. Each saves
# its own part, so that a dear one keeps no cheap one waiting.
_SHARE, _FIRST, _MOST, _RUN, _PAUSE = 0.005, 4.0, 8.0, 4, 32
# The lower quartile of so many of the newest steps is believed, as prefills and stalls lie in some;
# seconds are computed anew after so many batches, or a tenth of what is measured, which takes time.
_TIMES, _STALE = 15, 4


class Acceptance:
    """How often each drafted token is accepted if the one before is; newer outcomes count more."""

    def __init__(self, survivals: Sequence[float], most: int) -> None:
        ratios = [b / a for a, b in zip((1.0, *survivals), survivals)]  # noqa: B905
        self._belief = [ratios[min(i, len(ratios) - 1)] for i in range(most)]
        self._reached = [0.0] * most
        self._accepted = [0.0] * most

    def observe(self, steps: int, counts: Sequence[int]) -> None:
        """Learn from a batch that drafted `steps` tokens, of which `counts` were accepted."""
        # Also where few requests arrived: in another text, the next tokens are others, too.
        seen = 1.0 - min(len(counts) / _MEMORY, _MOST_REPLACED)
        for i in range(len(self._reached)):
            reached = sum(count >= i for count in counts) if i < steps else 0
            accepted = sum(count > i for count in counts) if i < steps else 0
            kept = seen if i < steps else _UNSEEN
            self._reached[i] = self._reached[i] * kept + reached
            self._accepted[i] = self._accepted[i] * kept + accepted

    def tokens(self) -> list[float]:
        """Return the expected tokens of a request from a step, for 0, 1, 2, ... drafted ones."""
        tokens, survival, found = [1.0], 1.0, 1.0
        for i, reached in enumerate(self._reached):
            # A token that was never reached is believed to do as well as the one before does.
            ratio = self._belief[i] / (self._belief[i - 1] if i else 1.0)
            belief = min(found * ratio, 1.0)
            found = (self._accepted[i] + _BELIEF * belief) / (reached + _BELIEF)
            survival *= found
            tokens.append(tokens[-1] + survival)
        return tokens


class Costs:
    """Seconds of a step by batch size and drafted tokens: a table, corrected by the clock.

    What is measured of one batch size and tier corrects the others, too, the more the closer their
    rows: a verification of 64 rows takes about as long for 16 requests as for 32.
    """

    def __init__(self, table: dict[str, Any] | None) -> None:
        self._table = table
        self._times: dict[tuple[int, int], deque[float]] = {}
        # Number of times, and logarithms of how much longer than listed they are, and of the rows.
        self._found: dict[tuple[int, int], tuple[int, float, float]] = {}
        self._observed = 0
        self._kept: dict[int, tuple[int, dict[int, float]]] = {}

    def observe(self, batch: int, steps: int, seconds: float) -> None:
        """Learn from the seconds of one step."""
        times = self._times.setdefault((batch, steps), deque(maxlen=_TIMES))
        times.append(seconds)
        quartile = sorted(times)[(len(times) - 1) // 4]
        longer = math.log(quartile / self.listed(batch, steps))
        self._found[batch, steps] = len(times), longer, math.log(batch * (steps + 1))
        self._observed += 1

    def seconds(self, batch: int, tiers: Sequence[int]) -> dict[int, float]:
        """Return the seconds of a step with each of the numbers of drafted tokens."""
        at, known = self._kept.get(batch, (0, {}))
        stale = self._observed - at >= max(_STALE, len(self._found) // 10)
        if stale or list(known) != list(tiers):
            known = {k: self.listed(batch, k) * math.exp(self._longer(batch, k)) for k in tiers}
            self._kept[batch] = self._observed, known
        return known

    def _longer(self, batch: int, steps: int) -> float:
        """Return the logarithm of how much longer than listed a step takes."""
        count, own, _ = self._found.get((batch, steps), (0, 0.0, 0.0))
        if count == _TIMES:
            return own
        rows, total, mean = math.log(batch * (steps + 1)), 0.0, 0.0
        for (size, tier), (times, longer, others) in self._found.items():
            if (size, tier) != (batch, steps):
                apart = 0.05 + abs(rows - others) + 0.1 * abs(steps - tier)
                weight = times / (apart * apart * apart)
                total, mean = total + weight, mean + weight * longer
        # A few times may all have been stalls.
        trust = count**2 / (count**2 + 4.0) if total else 1.0
        return trust * own + (1.0 - trust) * mean / (total or 1.0)

    def listed(self, batch: int, steps: int) -> float:
        """Return the seconds before anything is measured."""
        if self._table is None:
            # A guess that the clock soon corrects: 8 % for a pass of the head, 256 rows for twice.
            return 1.0 + 0.08 * steps + batch * (steps + 1) / 256
        rows = [_between(self._table["steps"], row, steps) for row in self._table["seconds"]]
        return _between(self._table["batch_sizes"], rows, batch)


def _between(grid: Sequence[int], values: Sequence[float], at: int) -> float:
    """Interpolate linearly; beyond the end the last slope continues, but never downwards."""
    if at <= grid[0] or len(grid) == 1:
        return values[0]
    right = min(bisect.bisect_left(grid, at), len(grid) - 1)
    slope = (values[right] - values[right - 1]) / (grid[right] - grid[right - 1])
    if at > grid[-1]:
        return values[-1] + max(slope, 0.0) * (at - grid[-1])
    return values[right - 1] + slope * (at - grid[right - 1])


class StepRule:
    """Chooses the number of drafted tokens; ranks that are told the same choose the same."""

    def __init__(
        self, most: int, survivals: Sequence[float], costs: dict[str, Any] | None, first: int = 0
    ) -> None:
        self.acceptance = Acceptance(survivals, most)
        self.costs = Costs(costs)
        self._first, self._tiers = first, 1
        self._chosen: dict[int, int] = {}
        self._saved = [_FIRST] * (most + 1)
        self._tried_at = [0] * (most + 1)
        self._trial = 0
        self._left, self._batches = 0, 0

    def choose(self, batch: int, allowed: Sequence[int]) -> int:
        """Return how many of the `allowed` numbers of tokens to draft, ascending, 0 for none."""
        tokens = self.acceptance.tokens()
        seconds = self.costs.seconds(batch, allowed)
        rates = {steps: tokens[steps] / seconds[steps] for steps in allowed}
        best = max(allowed, key=lambda steps: rates[steps])
        last = self._chosen.get(batch, self._first)
        if last in rates and rates[best] <= (1.0 + _MARGIN) * rates[last]:
            best = last
        self._chosen[batch] = best
        # What is lost with each tier: its seconds at the best rate, less its tokens.
        lost = {steps: rates[best] * seconds[steps] - tokens[steps] for steps in allowed}
        return self._tried(best, lost)

    def observe(self, batch: int, steps: int, counts: Sequence[int], seconds: float | None) -> None:
        """Learn from a batch: the accepted tokens of each request, and the time if it is known."""
        if not counts or not 0 <= min(counts) <= max(counts) <= steps:
            return
        self.acceptance.observe(steps, counts)
        earned = _SHARE * (1.0 + sum(counts) / len(counts)) / max(self._tiers - 1, 1)
        self._saved = [min(saved + earned, _MOST) for saved in self._saved]
        if seconds is not None and seconds > 0.0:
            self.costs.observe(batch, steps, seconds)

    def _tried(self, best: int, lost: dict[int, float]) -> int:
        """Return `best`, or a tier whose turn it is to be tried."""
        self._batches += 1
        if self._left and self._trial in lost:
            self._left -= 1
            return self._trial
        self._left, self._tiers = 0, len(lost)
        paused = self._batches - max(self._tried_at) < _PAUSE
        ready = [k for k in lost if k != best and _RUN * lost[k] <= self._saved[k]]
        if paused or not ready:
            return best
        steps = min(ready, key=lambda k: self._tried_at[k])
        self._saved[steps] -= max(_RUN * lost[steps], 0.0)
        self._tried_at[steps] = self._batches
        self._trial, self._left = steps, _RUN - 1
        return steps


class Policy:
    """SGLang's AdaptiveSpecPolicy, in the place of its AdaptiveSpeculativeParams.

    The tiers are those of --speculative-adaptive-config: the server's buffers are made for them,
    and each batch size has graphs of its own tiers only. With overlap the next batch runs already
    when a result is told: choices wait in a queue for theirs, and nothing is activated then.
    """

    def __init__(self, initial_steps: int, cfg_path: str | None = None) -> None:
        params = import_module("sglang.srt.speculative.adaptive_spec_params")
        _, entries = params._load_adaptive_config(cfg_path)
        self._tiers = {
            size: sorted(set(entry["candidate_steps"])) for size, entry in sorted(entries.items())
        }
        # The clocks of two ranks differ, and ranks that draft different numbers hang.
        parallel = import_module("sglang.srt.runtime_context").get_parallel()
        self._clock = time.perf_counter if parallel.tp_size * parallel.pp_size == 1 else None
        if COSTS is None and self._clock is None:
            raise ValueError(
                "several ranks cannot learn what steps cost, since their clocks differ: export "
                "the policy again with --costs"
            )
        self._rule = StepRule(max(self.candidate_steps), SURVIVALS, COSTS, initial_steps)
        self._graphs: list[int] | None = None
        # With overlap, one batch runs while the next one is asked for.
        self._waiting: deque[tuple[int, int]] = deque(maxlen=2)
        self._last: float | None = None

    @property
    def candidate_steps(self) -> list[int]:
        """All tiers, ascending."""
        return sorted({steps for tiers in self._tiers.values() for steps in tiers})

    def set_cuda_graph_bs(self, cuda_graph_bs: list[int] | None) -> None:
        """Take the batch sizes that have graphs; None if there are none."""
        self._graphs = sorted(cuda_graph_bs) if cuda_graph_bs else None

    def cuda_graph_bs_for_step(self, step: int) -> list[int] | None:
        """Return the batch sizes for which to capture graphs of a tier."""
        if self._graphs is None:
            return None
        return [size for size in self._graphs if step in self._allowed(size)]

    def get_steps_for_batch(self, batch_size: int) -> int:
        """Return the tier of the batch that is about to run."""
        size = self._padded(batch_size)
        steps = self._rule.choose(size, self._allowed(size))
        self._waiting.append((batch_size, steps))
        return steps

    def on_verify_complete(
        self, num_correct_drafts_per_req: list[int], batch_size: int
    ) -> int | None:
        """Learn from a result; return None, for no change now."""
        now = self._clock() if self._clock else None
        before, self._last = self._last, now
        while self._waiting:
            size, steps = self._waiting.popleft()
            if size == batch_size:
                seconds = None if now is None or before is None else now - before
                self._rule.observe(self._padded(size), steps, num_correct_drafts_per_req, seconds)
                break
        return None

    def _allowed(self, size: int) -> list[int]:
        sizes = list(self._tiers)
        return self._tiers[sizes[max(bisect.bisect_right(sizes, size) - 1, 0)]]

    def _padded(self, batch_size: int) -> int:
        """Return the size that the batch is padded to, or one of few sizes without a graph."""
        graphs, batch_size = self._graphs or [], max(batch_size, 1)
        if (index := bisect.bisect_left(graphs, batch_size)) < len(graphs):
            return graphs[index]
        return math.ceil(batch_size / 8) * 8 if batch_size > 8 else batch_size


def register() -> None:
    """Put `Policy` into SGLang's place; the entry point of group sglang.srt.plugins.

    Raises:
        RuntimeError: this SGLang has another protocol; it then goes on with its own policy.
    """
    module = "sglang.srt.speculative.adaptive_runtime_state"
    protocol = import_module(module).AdaptiveSpecPolicy
    params = import_module("sglang.srt.speculative.adaptive_spec_params")
    version = import_module("sglang.version").__version__
    names = {name for name in vars(protocol) if not name.startswith("_")}
    missing = sorted(name for name in names if not hasattr(Policy, name))
    if missing or not names or not hasattr(params, "_load_adaptive_config"):
        raise RuntimeError(
            f"made for SGLang {MADE_FROM['version']}, whose AdaptiveSpecPolicy differs from that "
            f"of {version} ({', '.join(missing) or 'its config'})"
        )
    if version != MADE_FROM["version"]:
        logger.warning("made for SGLang %s, not tried with %s", MADE_FROM["version"], version)
    hooks = import_module("sglang.srt.plugins.hook_registry")
    target = "sglang.srt.speculative.adaptive_spec_params.AdaptiveSpeculativeParams"
    hooks.HookRegistry.register(target, Policy, hooks.HookType.REPLACE)


def worthwhile_tiers(costs: dict[str, Any]) -> dict[str, dict[str, list[int]]]:
    """Return the tiers of each batch size that some acceptance makes the best.

    Survivals descend, so k tokens gain most over fewer if all are accepted: a tier that does not
    pay even then needs no graphs.
    """
    config = {}
    for size, row in zip(costs["batch_sizes"], costs["seconds"], strict=True):
        best, tiers = 0.0, []
        for steps, seconds in zip(costs["steps"], row, strict=True):
            if (steps + 1) / seconds > best:
                best = (steps + 1) / seconds
                tiers.append(steps)
        config[str(size)] = {"candidate_steps": tiers}
    return config


def write_package(folder: Path) -> None:
    """Write this module and a pyproject.toml with the entry point into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    module = Path(__file__).stem
    (folder / f"{module}.py").write_bytes(Path(__file__).read_bytes())
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n\n'
        f'[project]\nname = "{module.replace("_", "-")}"\nversion = "1.0"\n\n'
        f'[project.entry-points."sglang.srt.plugins"]\n{module} = "{module}:register"\n\n'
        f'[tool.setuptools]\npy-modules = ["{module}"]\n',
        "utf-8",
    )


def simulate(
    rule: StepRule,
    tiers: Sequence[int],
    survivals: Sequence[float],
    seconds: Callable[[int, int], float],
    *,
    batch: int,
    batches: int,
    draw: random.Random,
) -> float:
    """Return the tokens per second of a made-up server with one batch size and kind of text."""
    tokens, total = 0, 0.0
    for _ in range(batches):
        steps = rule.choose(batch, tiers)
        drawn = [draw.random() for _ in range(batch)]
        counts = [sum(one < survival for survival in survivals[:steps]) for one in drawn]
        rule.observe(batch, steps, counts, seconds(batch, steps))
        tokens += batch + sum(counts)
        total += seconds(batch, steps)
    return tokens / total


def _test() -> None:
    costs = Costs(COSTS)
    tiers = (0, 1, 3, 5, 7) if COSTS is None else COSTS["steps"]
    for first in (0.9, 0.6, 0.05):
        survivals = [first**i for i in range(1, max(tiers) + 1)]
        for batch in (1, 8, 64) if COSTS is None else COSTS["batch_sizes"]:
            rule, draw = StepRule(max(tiers), SURVIVALS, COSTS), random.Random(1)
            sizes = {"batch": batch, "batches": 3000}
            reached = simulate(rule, tiers, survivals, costs.listed, draw=draw, **sizes)
            rates = {k: (1 + sum(survivals[:k])) / costs.listed(batch, k) for k in tiers}
            best = max(rates, key=rates.__getitem__)
            share = reached / (batch * rates[best])
            sys.stdout.write(
                f"{batch:3} requests, survival {first}: best with {best} drafted tokens; "
                f"{share:.3f} of that reached\n"
            )
            if share < 0.95:
                raise SystemExit("failed: less than 0.95")


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    if not arguments:
        _test()
    elif arguments == ["--config"]:
        if COSTS is None:
            raise SystemExit("the tiers that pay are unknown: export with --costs")
        sys.stdout.write(json.dumps(worthwhile_tiers(COSTS), indent=1) + "\n")
    elif len(arguments) == 2 and arguments[0] == "--package":
        write_package(Path(arguments[1]))
    else:
        raise SystemExit(f"usage: {Path(__file__).name} [--config | --package DIR]")


if __name__ == "__main__":
    main(sys.argv[1:])
