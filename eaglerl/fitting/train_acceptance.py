"""Training of an acceptance policy as a run: phases that are saved one by one, and what it leaves.

A run that was killed goes on behind the last phase that it finished. Every phase is determined by
the traces, the options and the phases before, so it ends with the weights of an unbroken run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eaglerl.actions import ActionSpace
from eaglerl.cost.cost_table import CostTable
from eaglerl.files import exclusive_folder
from eaglerl.fitting.acceptance_report import plot_fit, write_calibration, write_card
from eaglerl.fitting.batch_simulate import walk_traces
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
    fit_chain_net,
    fit_pool_net,
    fit_stopping,
    new_model,
    read_positions,
)
from eaglerl.fitting.scored_positions import judge_positions
from eaglerl.policies.acceptance_file import save_acceptance
from eaglerl.policies.acceptance_model import AcceptanceModel
from eaglerl.policies.baselines import best_constant
from eaglerl.policies.small_net import SmallNet
from eaglerl.runs.checkpoints import resuming
from eaglerl.runs.policy_run import PolicyRun
from eaglerl.traces.oracle import known_actions
from eaglerl.traces.trace_set import Trace

#: Penalties of the stopping rule that are tried.
RIDGES = (10.0, 100.0, 1000.0, 10_000.0)

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class TrainAcceptanceOptions:
    """How an acceptance policy is trained.

    Attributes:
        fit: how a model is fitted; its penalty is chosen among `ridges`.
        folds: parts that the prompts are dealt into, each held out once.
        ridges: penalties of the stopping rule to choose from, by cross-validation.

    Raises:
        ValueError: a value out of its range.
    """

    fit: AcceptanceOptions = field(default_factory=AcceptanceOptions)
    folds: int = 4
    ridges: tuple[float, ...] = RIDGES

    def __post_init__(self) -> None:
        if not isinstance(self.folds, int) or isinstance(self.folds, bool) or self.folds < 2:
            raise ValueError(f"folds must be an int of at least 2, got {self.folds!r}")
        if not self.ridges or not all(0 < ridge < float("inf") for ridge in self.ridges):
            raise ValueError(f"ridges must be positive numbers, got {self.ridges!r}")


@dataclass(frozen=True, eq=False)
class TrainedAcceptance:
    """What a run gave.

    Attributes:
        model: fitted to all traces.
        path: folder of the policy: the model, its card and its curves.
        gain: over the best constant tree, cross-validated.
        ridge: penalty that was chosen.
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
    """Fit an acceptance policy to traces; a folder with checkpoints goes on.

    The stopping rule's penalty is chosen by cross-validation over prompts: the policy decodes the
    traces of each fold with nets and rules fitted to the others, and the penalty with the most
    tokens per second counts. The gain over the constant tree, which is tuned on the other folds
    too, goes into the file as what `FallbackPolicy` begins with.

    Args:
        traces: to learn from.
        actions: constant trees to compare with; those that the traces or the cost table do not
            know are left out.
        cost: time of the cycles.
        output: the run's folder.
        options: see `TrainAcceptanceOptions`.
        target_id: hash of the target that wrote the continuations.
        head_id: hash of the head that was replayed.
        progress: is told a stage and the share done.

    Raises:
        ValueError: fewer prompts than folds, a tree or chain that the traces or the cost table do
            not know, or a folder of a run with other options.
        AlreadyLockedError: another process is at work in the folder.
    """
    run = _Run(traces, actions, cost, output, options or TrainAcceptanceOptions(), progress)
    with exclusive_folder(output):
        run.configure(target_id, head_id)
        run.go_through()
        return run.finish(target_id, head_id)


class _Run:
    """The phases of a run and what they found."""

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
        # What the traces lack is named before anything is written.
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
        """Open the folder, and take up what a run before has left there."""
        configuration = {
            **asdict(self.options),
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
        """Do the phases that are left, and save after each."""
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
        """Write the policy."""
        ridge = self._chosen_ridge()
        gain = self._gain(ridge)
        model = replace(
            self._bare_model("all"),
            stop_weights=self.tensors["all.stop_weights"].numpy(),
            rate=float(self.tensors["all.rate"]),
            constant=best_constant(self.traces, self.actions, self.cost).params,
            gain=gain.gain,
        )
        folder = self.run.policy_path
        folder.mkdir(exist_ok=True)
        report = {"target_id": target_id, "head_id": head_id} | self._report(ridge, gain, model)
        write_calibration(self.run.path / "calibration.json", self._sum("reliability"),
                          self._sum("expected"))  # fmt: skip
        save_acceptance(
            model, folder / "model.safetensors", target_id=target_id, head_id=head_id,
            training=report,
        )  # fmt: skip
        # The guard's gain and lambda are those of this table.
        self.cost.to_json(folder / "cost.json")
        plot_fit(self.run.records, folder / "learning_curve.png")
        write_card(folder / "README.md", report, self._sum("reliability"))
        return TrainedAcceptance(model, folder, gain, ridge)

    def _fit_net(self, name: str, kind: str) -> dict[str, Any]:
        losses: list[tuple[int, float]] = []

        def report(step: int, loss: float) -> None:
            losses.append((step, loss))
            self._show(name, kind, step / self.options.fit.steps)

        fit = fit_pool_net if kind == "draft" else fit_chain_net
        net = None
        # Without chains there is nothing for the second net to judge.
        if kind == "draft" or self.options.fit.chain_length:
            positions = read_positions(self._training(name), self.options.fit)
            net = fit(positions, self.options.fit, report)
        if net is not None:
            self.tensors |= net.tensors(f"{name}.{kind}")
        return {"losses": losses}

    def _fit_rules(self, name: str) -> dict[str, Any]:
        """The rules of all penalties and what they are worth on the fold; of all traces, one."""
        model = self._bare_model(name)
        positions = read_positions(self._training(name), self.options.fit)
        judged = judge_positions(
            model, positions, lambda share: self._show(name, "stopping", 0.5 * share)
        )
        ridges = [self._chosen_ridge()] if name == "all" else self.options.ridges
        held_out = self._held_out(name)
        rates: dict[str, list[float]] = {}
        seconds = []
        for index, ridge in enumerate(ridges):
            curve = rates.setdefault(f"{ridge:g}", [])
            fitted = fit_stopping(
                model, judged, positions, self.cost, replace(self.options.fit, ridge=ridge),
                lambda _, rate, curve=curve: curve.append(rate),
            )  # fmt: skip
            if held_out:
                seconds.append(walk_traces(fitted, held_out, self.cost).seconds)
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
        del judged
        asked = read_positions(held_out, self.options.fit)
        judged = judge_positions(fitted, asked)
        self._keep(f"{name}.reliability", reliability(fitted, judged, asked))
        self._keep(f"{name}.expected", expected_lengths(fitted, judged, asked, self.cost))
        return {"rates": rates}

    def _bare_model(self, name: str) -> AcceptanceModel:
        nets = {}
        for kind in ("draft", "lookup"):
            there = f"{name}.{kind}.weight.0" in self.tensors
            nets[kind] = SmallNet.from_tensors(self.tensors, f"{name}.{kind}") if there else None
        return new_model(self.options.fit, self.cost, nets["draft"], nets["lookup"])

    def _training(self, name: str) -> list[Trace]:
        pairs = zip(self.traces, self._fold_of, strict=True)
        return [trace for trace, fold in pairs if name != f"fold {fold + 1}"]

    def _held_out(self, name: str) -> list[Trace]:
        pairs = zip(self.traces, self._fold_of, strict=True)
        return [trace for trace, fold in pairs if name == f"fold {fold + 1}"]

    def _by_prompt(self, what: str) -> np.ndarray:
        """(..., n) values of the folds, each in the place of its trace."""
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
        return sum(
            self.tensors[f"fold {fold + 1}.{what}"].numpy() for fold in range(self.options.folds)
        )

    def _report(self, ridge: float, gain: Gain, model: AcceptanceModel) -> dict[str, Any]:
        chosen = self._by_prompt("seconds")[self.options.ridges.index(ridge)]
        constant = self._by_prompt("constant")
        domains = np.array([trace.domain for trace in self.traces])
        return {
            "prompts": len({trace.prompt_id for trace in self.traces}),
            "positions": sum(len(trace) for trace in self.traces),
            "machine": self.cost.machine,
            "draft_dtype": self.cost.draft_dtype,
            "options": asdict(self.options)
            | {"fit": asdict(replace(self.options.fit, ridge=ridge))},
            "constant": asdict(model.constant),
            "rate": model.rate,
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
