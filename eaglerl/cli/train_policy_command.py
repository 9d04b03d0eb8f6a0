"""`eaglerl train-policy`: train a policy that chooses the draft tree, on traces or live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eaglerl.cli.shared.action_options import leave_out_unknown, read_actions
from eaglerl.cli.shared.options import load_decoder
from eaglerl.cli.shared.prompt_files import read_prompt_files
from eaglerl.cli.shared.settings import settings_command
from eaglerl.cli.shared.terminal import progress_bar, say
from eaglerl.cli.shared.trace_options import read_traces
from eaglerl.cli.train_policy_settings import TrainPolicySettings

if TYPE_CHECKING:
    from eaglerl.actions import ActionSpace
    from eaglerl.cost.cost_table import CostTable
    from eaglerl.sb3.train_policy import TrainPolicyOptions
    from eaglerl.traces.trace_set import Trace

    _Show = Callable[[str, float], None]


@settings_command
def train_policy(settings: TrainPolicySettings) -> None:
    """Train a policy that chooses the draft tree.

    PPO and DQN learn by trial and error: on traces, thousands of windows a second; or live, while
    a model decodes. The same command continues an interrupted run; on traces the result is the
    same as without the interruption. The policy auto, the default of other commands, needs no
    training.
    """
    with progress_bar() as show:
        show("loading libraries", 0.0)
        message = _train(settings, show)
    say(message)


def _train(settings: TrainPolicySettings, show: _Show) -> str:
    """Train the policy, and return a sentence on where it is and its speed."""
    _check_extra()
    from eaglerl.cost.cost_table import CostTable

    options = settings.trainer_options()
    actions = read_actions(settings.actions)
    cost = None if settings.cost is None else CostTable.from_json(settings.cost)
    if settings.prompts:
        return _train_live(settings, options, actions, cost, show)
    assert cost is not None  # the settings demand it with traces
    data = _read_data(settings, actions, cost, show)
    train = _train_as_resps if settings.reference else _train_on_traces
    return train(settings, options, data, show)


def _check_extra() -> None:
    try:
        import eaglerl.sb3.train_policy  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in ("gymnasium", "stable_baselines3"):
            raise
        raise ImportError(
            f"training needs {error.name}: install the extra with pip install 'eaglerl[rl]'"
        ) from error


def _train_live(
    settings: TrainPolicySettings,
    options: TrainPolicyOptions,
    actions: ActionSpace,
    cost: CostTable | None,
    show: _Show,
) -> str:
    from eaglerl.sb3.train_policy import train_policy_live

    show("loading the model", 0.0)
    decoder = load_decoder(settings)
    result = train_policy_live(
        decoder,
        list(read_prompt_files(decoder, settings.prompts or ())),
        actions,
        settings.output,
        options,
        max_new_tokens=settings.max_new_tokens,
        cost=cost,
        progress=show,
    )
    return f"the policy is in {result.path}"


@dataclass(frozen=True)
class _TraceData:
    """What a policy is trained on.

    Attributes:
        training: traces to learn from.
        held_out: traces to choose the best policy of the run by; may be empty.
        head: id of their draft head.
        actions: trees that all traces and the cost table have an answer for.
        cost: time of the cycles.
    """

    training: list[Trace]
    held_out: list[Trace]
    head: str
    actions: ActionSpace
    cost: CostTable


def _read_data(
    settings: TrainPolicySettings, actions: ActionSpace, cost: CostTable, show: _Show
) -> _TraceData:
    training, held_out, head = read_traces(settings.traces or (), settings.held_out)
    actions = leave_out_unknown(actions, [*training, *held_out], cost)
    if settings.select is not None:
        from eaglerl.traces.oracle import select_actions

        show("choosing actions", 0.0)
        actions = actions.subset(select_actions(actions, training, cost, settings.select))
    return _TraceData(training, held_out, head, actions, cost)


def _train_on_traces(
    settings: TrainPolicySettings, options: TrainPolicyOptions, data: _TraceData, show: _Show
) -> str:
    from eaglerl.sb3.train_policy import train_policy as run

    result = run(
        data.training,
        data.actions,
        data.cost,
        settings.output,
        options,
        held_out=data.held_out,
        head=data.head,
        progress=show,
    )
    message = f"the policy is in {result.path}"
    if result.validation is None:
        return message
    assert result.constant is not None  # both are measured on the held-out traces
    gain = 100 * (result.validation / result.constant - 1)
    return (
        f"{message}; held out: {result.validation:.2f} tokens/s, {gain:+.1f} % against the best "
        "constant tree"
    )


def _train_as_resps(
    settings: TrainPolicySettings, options: TrainPolicyOptions, data: _TraceData, show: _Show
) -> str:
    from eaglerl.resps.train_reference import train_reference
    from eaglerl.traces.simulation import simulate, total

    policy = train_reference(
        options.algorithm,
        data.training,
        data.actions,
        data.cost,
        settings.output,
        total_steps=options.total_steps,
        action_cache_steps=options.cache_steps,
        seed=options.seed,
        head=data.head,
        progress=show,
    )
    message = f"the policy is in {settings.output / 'policy'}"
    if not data.held_out:
        return message
    speed = total(simulate(policy, data.held_out, data.cost)).tokens_per_second
    return f"{message}; held out: {speed:.2f} tokens/s"
