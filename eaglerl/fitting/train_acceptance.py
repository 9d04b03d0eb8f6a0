"""Training of an acceptance policy as a resumable run of phases.

A checkpoint follows every phase, and a killed run resumes after the last finished one. Each phase
depends only on the traces, the options and the phases before, so a resumed run ends with the same
weights as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eaglerl.actions import ActionSpace
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import TreeParams
from eaglerl.files import exclusive_folder
from eaglerl.fitting.acceptance_report import plot_fit, write_calibration, write_card
from eaglerl.fitting.batch_simulate import batch_simulate
from eaglerl.fitting.cross_validation import (
    Gain,
    assign_folds,
    constant_seconds_held_out,
    expected_lengths,
    gain_over,
    reliability,
)
from eaglerl.fitting.fit_acceptance import (
    AcceptanceOptions,
    fit_lookup_net,
    fit_pool_net,
    fit_stopping,
    new_model,
    read_positions,
)
from eaglerl.fitting.scored_positions import score_positions
from eaglerl.policies.acceptance_file import save_acceptance
from eaglerl.policies.acceptance_model import AcceptanceModel
from eaglerl.policies.baselines import best_constant_tree
from eaglerl.policies.small_net import SmallNet
from eaglerl.runs.checkpoints import resuming
from eaglerl.runs.policy_run import PolicyRun
from eaglerl.traces.oracle import known_actions
from eaglerl.traces.trace_set import Trace

#: Penalties of the stopping rule to choose from.
RIDGES = (10.0, 100.0, 1000.0, 10_000.0)

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class TrainAcceptanceOptions:
    """Options of the training of an acceptance policy.

    Attributes:
        fit: options of a fit; `ridges` replace its penalty.
        folds: number of folds of the cross-validation over prompts.
        ridges: penalties of the stopping rule to choose from, by cross-validation.

    Raises:
        ValueError: a value is out of range.
    """

    fit: AcceptanceOptions = field(default_factory=AcceptanceOptions)
    folds: int = 4
    ridges: tuple[float, ...] = RIDGES

    def __post_init__(self) -> None:
        if not isinstance(self.folds, int) or isinstance(self.folds, bool) or self.folds < 2:
            raise ValueError(f"folds must be an int of at least 2, got {self.folds!r}")
        if not self.ridges or not all(0 < ridge < float("inf") for ridge in self.ridges):
            raise ValueError(f"ridges must be positive numbers, got {self.ridges!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return the options under the names that they have in files."""
        return {"fit": self.fit.to_dict(), "folds": self.folds, "ridges": self.ridges}


@dataclass(frozen=True, eq=False)
class TrainedAcceptance:
    """A trained acceptance policy.

    Attributes:
        model: the model fitted to all traces.
        path: folder of the policy, with the model, its card and its curves.
        gain: cross-validated gain over the best constant tree.
        ridge: chosen penalty.
    """

    model: AcceptanceModel
    path: Path
    gain: Gain
    ridge: float


def train_acceptance(
    traces: Sequence[Trace],
    actions: ActionSpace,
    cost: CostTable,
    output: str | Path,
    options: TrainAcceptanceOptions | None = None,
    *,
    target_id: str,
    head_id: str,
    progress: Progress | None = None,
) -> TrainedAcceptance:
    """Fit an acceptance policy to traces, or resume the run in a folder with checkpoints.

    The stopping rule's penalty is chosen by cross-validation over prompts: the policy decodes the
    traces of each fold with nets and rules fitted to the other folds, and the penalty with the most
    tokens per second wins. The gain over the constant tree, which is tuned on the other folds too,
    is written to the model's file, where it is the prior of `FallbackPolicy`.

    Args:
        traces: training traces.
        actions: constant trees to compare with; those that the traces or the cost table lack are
            ignored.
        cost: duration of the cycles.
        output: the run's folder.
        options: see `TrainAcceptanceOptions`.
        target_id: hash of the target that wrote the continuations.
        head_id: hash of the head that was replayed.
        progress: called with a stage and the share done.

    Raises:
        ValueError: there are fewer prompts than folds; the traces or the cost table lack the
            policy's trees or looked-up tokens; or the folder holds a run with other options.
        AlreadyLockedError: another process is using the folder.
    """
    run = _Run(traces, actions, cost, output, options or TrainAcceptanceOptions(), progress)
    with exclusive_folder(output):
        run.configure(target_id, head_id)
        run.go_through()
        return run.finish(target_id, head_id)


class _Run:
    """The phases of a run and their results.

    The results are tensors, by names that begin with "fold 1", ..., or "all": a net's weights, the
    seconds of the held-out prompts for each penalty and for the constant tree, and calibration.
    """

    def __init__(
        self,
        traces: Sequence[Trace],
        actions: ActionSpace,
        cost: CostTable,
        output: str | Path,
        options: TrainAcceptanceOptions,
        progress: Progress | None,
    ) -> None:
        self.traces, self.cost, self.options = list(traces), cost, options
        self.actions = known_actions(actions, self.traces, cost)
        self._fold_of = assign_folds(self.traces, options.folds)
        cost.draft_seconds(0, options.fit.top_k, 0)
        cost.verify_seconds(options.fit.max_rows, 0)
        # Raises for sizes that the cost table (above) or the traces lack, before files are written.
        read_positions(self.traces[:1], options.fit)
        self.output = Path(output)
        self.tensors: dict[str, torch.Tensor] = {}
        self._progress = progress
        names = [f"fold {fold + 1}" for fold in range(options.folds)]
        self.phases = [
            (name, kind) for name in [*names, "all"] for kind in ("draft", "lookup", "stopping")
        ]
        self._phase = 0

    def configure(self, target_id: str, head_id: str) -> None:
        """Open the folder, and restore the newest checkpoint if there is one."""
        configuration = {
            **self.options.to_dict(),
            "actions": [[*asdict(tree).values()] for tree in self.actions],
            "target_id": target_id,
            "head_id": head_id,
            "traces": [trace.prompt_id for trace in self.traces],
            "cost": asdict(self.cost),
        }
        self.run = PolicyRun(self.output, configuration)
        checkpoint = self.run.checkpoints.newest()
        if checkpoint is None:
            self.run.restore([])
            return
        with resuming(checkpoint):
            self.run.restore(checkpoint.info["records"])
            self._phase, self.tensors = checkpoint.step, dict(checkpoint.tensors)

    def go_through(self) -> None:
        """Run the remaining phases, with a checkpoint after each."""
        for number, (name, kind) in enumerate(self.phases[self._phase :], start=self._phase):
            self._phase = number
            self._show(name, kind, 0.0)
            record = {"step": number + 1, "name": name, "kind": kind}
            if kind == "stopping":
                record |= self._fit_rules(name)
            else:
                record |= self._fit_net(name, kind)
            self.run.log(record)
            self.run.checkpoints.save(number + 1, self.tensors, {"records": self.run.records})
            plot_fit(self.run.records, self.run.path / "learning_curve.png")

    def finish(self, target_id: str, head_id: str) -> TrainedAcceptance:
        """Write the policy's folder."""
        ridge = self._chosen_ridge()
        gain = self._gain(ridge)
        constant = best_constant_tree(self.traces, self.actions, self.cost)
        model = replace(
            self._bare_model("all"),
            stop_weights=self.tensors["all.stop_weights"].numpy(),
            rate=float(self.tensors["all.rate"]),
            constant=constant,
            gain=gain.gain,
        )
        folder = self.run.policy_path
        folder.mkdir(exist_ok=True)
        report = {"target_id": target_id, "head_id": head_id}
        report |= self._report(ridge, gain, constant, model.rate)
        write_calibration(self.run.path / "calibration.json", self._sum("reliability"),
                          self._sum("expected"))  # fmt: skip
        save_acceptance(
            model, folder / "model.safetensors", target_id=target_id, head_id=head_id,
            training=report,
        )  # fmt: skip
        # The model's gain and rate hold for this table.
        self.cost.to_json(folder / "cost.json")
        plot_fit(self.run.records, folder / "learning_curve.png")
        write_card(folder / "README.md", report, self._sum("reliability"))
        return TrainedAcceptance(model, folder, gain, ridge)

    def _fit_net(self, name: str, kind: str) -> dict[str, Any]:
        losses: list[tuple[int, float]] = []

        def report(step: int, loss: float) -> None:
            losses.append((step, loss))
            self._show(name, kind, step / self.options.fit.steps)

        fit = fit_pool_net if kind == "draft" else fit_lookup_net
        net = None
        # Without lookups there are no candidates for the second net.
        if kind == "draft" or self.options.fit.lookup_tokens:
            positions = read_positions(self._training(name), self.options.fit)
            net = fit(positions, self.options.fit, report)
        if net is not None:
            self.tensors |= net.tensors(f"{name}.{kind}")
        return {"losses": losses}

    def _fit_rules(self, name: str) -> dict[str, Any]:
        """Fit the stopping rule; on a fold with every penalty, and measure each on held-out traces.

        On all traces, the rule is fitted with the chosen penalty alone.
        """
        model = self._bare_model(name)
        positions = read_positions(self._training(name), self.options.fit)
        scored = score_positions(
            model, positions, lambda share: self._show(name, "stopping", 0.5 * share)
        )
        ridges = [self._chosen_ridge()] if name == "all" else self.options.ridges
        held_out = self._held_out(name)
        rates: dict[str, list[float]] = {}
        seconds = []
        for index, ridge in enumerate(ridges):
            curve = rates.setdefault(f"{ridge:g}", [])
            fitted = fit_stopping(
                model, scored, positions, self.cost, replace(self.options.fit, ridge=ridge),
                _appender(curve),
            )  # fmt: skip
            if held_out:
                seconds.append(batch_simulate(fitted, held_out, self.cost).seconds)
            self._show(name, "stopping", 0.5 + 0.5 * (index + 1) / len(ridges))
        if name == "all":
            self.tensors["all.stop_weights"] = torch.from_numpy(fitted.stop_weights)
            self.tensors["all.rate"] = torch.tensor(fitted.rate, dtype=torch.float64)
            return {"rates": rates}
        constant = constant_seconds_held_out(
            self._training(name), held_out, self.actions, self.cost
        )
        self._keep(f"{name}.seconds", np.stack(seconds))
        self._keep(f"{name}.constant", constant)
        # The training positions fill most of the memory.
        del scored
        asked = read_positions(held_out, self.options.fit)
        scored = score_positions(fitted, asked)
        self._keep(f"{name}.reliability", reliability(fitted, scored, asked))
        self._keep(f"{name}.expected", expected_lengths(fitted, scored, asked, self.cost))
        return {"rates": rates}

    def _bare_model(self, name: str) -> AcceptanceModel:
        """Make a model of the fitted nets, without a stopping rule."""
        draft = SmallNet.from_tensors(self.tensors, f"{name}.draft")
        has_lookups = f"{name}.lookup.weight.0" in self.tensors
        lookup = SmallNet.from_tensors(self.tensors, f"{name}.lookup") if has_lookups else None
        return new_model(self.options.fit, self.cost, draft, lookup)

    def _training(self, name: str) -> list[Trace]:
        pairs = zip(self.traces, self._fold_of, strict=True)
        return [trace for trace, fold in pairs if name != f"fold {fold + 1}"]

    def _held_out(self, name: str) -> list[Trace]:
        pairs = zip(self.traces, self._fold_of, strict=True)
        return [trace for trace, fold in pairs if name == f"fold {fold + 1}"]

    def _by_prompt(self, what: str) -> np.ndarray:
        """Join the folds' values of held-out traces to (..., n), in the order of the traces."""
        parts = [
            self.tensors[f"fold {fold + 1}.{what}"].numpy() for fold in range(self.options.folds)
        ]
        order = np.argsort(self._fold_of, kind="stable")
        values = np.empty((*parts[0].shape[:-1], len(order)))
        values[..., order] = np.concatenate(parts, axis=-1)
        return values

    def _chosen_ridge(self) -> float:
        return self.options.ridges[int(self._by_prompt("seconds").sum(axis=-1).argmin())]

    def _gain(self, ridge: float) -> Gain:
        seconds = self._by_prompt("seconds")[self.options.ridges.index(ridge)]
        return gain_over(seconds, self._by_prompt("constant"))

    def _sum(self, what: str) -> np.ndarray:
        """Sum a result over the folds."""
        folds = range(self.options.folds)
        return reduce(np.add, (self.tensors[f"fold {fold + 1}.{what}"].numpy() for fold in folds))

    def _report(
        self, ridge: float, gain: Gain, constant_tree: TreeParams, rate: float
    ) -> dict[str, Any]:
        """Describe the training and its gains, as JSON values."""
        chosen = self._by_prompt("seconds")[self.options.ridges.index(ridge)]
        constant = self._by_prompt("constant")
        domains = np.array([trace.domain for trace in self.traces])
        return {
            "prompts": len({trace.prompt_id for trace in self.traces}),
            "positions": sum(len(trace) for trace in self.traces),
            "machine": self.cost.machine,
            "draft_dtype": self.cost.draft_dtype,
            "options": replace(self.options, fit=replace(self.options.fit, ridge=ridge)).to_dict(),
            "constant": asdict(constant_tree),
            "rate": rate,
            "ridge": ridge,
            "gain": asdict(gain),
            "gain_by_ridge": {
                f"{each:g}": asdict(self._gain(each)) for each in self.options.ridges
            },
            "gain_by_domain": {
                str(domain): {
                    "prompts": int((domains == domain).sum()),
                    **asdict(gain_over(chosen[domains == domain], constant[domains == domain])),
                }
                for domain in np.unique(domains)
            },
        }

    def _keep(self, name: str, values: np.ndarray) -> None:
        self.tensors[name] = torch.from_numpy(np.asarray(values, dtype=np.float64))

    def _show(self, name: str, kind: str, share: float) -> None:
        if self._progress is not None:
            self._progress(f"{name}: {kind}", (self._phase + share) / len(self.phases))


def _appender(rates: list[float]) -> Callable[[int, float], None]:
    """Make a report for `fit_stopping` that collects the rates."""

    def report(_: int, rate: float) -> None:
        rates.append(rate)

    return report
