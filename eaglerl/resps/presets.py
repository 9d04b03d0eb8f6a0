"""The grids of policies that the scripts of Re-SpS train and compare, each as one list of modes.

PPO: {standard, OFL} x {features, context only} x {max-entropy, not}. DQN has no versions:
{features, context only} x {max-entropy, not}.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from eaglerl.actions import ActionSpace
from eaglerl.cost.cost_table import CostTable
from eaglerl.envs import observations
from eaglerl.evaluation.modes.mode_names import ModeSpec, parse_mode
from eaglerl.files import atomic_path, exclusive_folder
from eaglerl.json_file import JsonObject, read_json
from eaglerl.resps.bench_policies import NO_CHECKPOINTS_WITHIN, version_options
from eaglerl.resps.policies.load_saved import POLICIES
from eaglerl.resps.policies.policy_file import CARD_NAME, read_card, write_policy_folder
from eaglerl.resps.train_online import learn_from_traces
from eaglerl.traces.trace_set import Trace

PRESETS = ("ppo-modes", "dqn-modes")
#: Folder of the policies below that of a comparison.
POLICIES_NAME = "policies"
#: Cycles that a decision serves while a policy learns and when it is evaluated, as in Re-SpS.
LEARNING_CACHE_STEPS, EVALUATION_CACHE_STEPS = 10, 30
#: Widths of the network in the paper's default combination.
_OFL_WIDTHS = "128,128"
_SETTINGS_NAME = "preset.json"

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class PresetPolicy:
    """One policy of a grid.

    Attributes:
        algorithm: "ppo" or "dqn".
        version: of PPO: "standard" or "ofl"; None for DQN.
        context_only: whether it reads the context's text instead of the features.
        max_entropy: whether it explores for entropy, and draws trees when it is evaluated.
    """

    algorithm: str
    version: str | None
    context_only: bool
    max_entropy: bool

    @property
    def label(self) -> str:
        """Name of its mode."""
        parts = [self.algorithm, self.version, "context" if self.context_only else "features"]
        return "-".join([part for part in parts if part] + ["max-entropy"] * self.max_entropy)


@dataclass(frozen=True)
class PresetInputs:
    """What the policies of a grid are trained on.

    Attributes:
        traces: traces of questions that the comparison does not decode.
        actions: trees to choose from.
        cost: time of the cycles.
        tokenizer: the target's, for policies of the text.
        head_id: hash of the head whose traces these are.
        steps: cache windows that each policy learns from.
        seed: of networks, draws and orders.
        text_model: what embeds the context's text, see `sentence_encoder`.
    """

    traces: Sequence[Trace]
    actions: ActionSpace
    cost: CostTable
    tokenizer: Any
    head_id: str
    steps: int = 2000
    seed: int = 0
    text_model: str = observations.TEXT_MODEL

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that a folder of policies must share."""
        names = "".join(sorted(trace.prompt_id for trace in self.traces))
        own = {"text_model": self.text_model}
        return ({} if self.text_model == observations.TEXT_MODEL else own) | {
            "traces": hashlib.sha256(names.encode()).hexdigest()[:16],
            "actions": self.actions.to_dict(),
            "cost": asdict(self.cost),
            "head_id": self.head_id,
            "steps": self.steps,
            "seed": self.seed,
        }


def preset_policies(name: str, *, context: bool = True) -> tuple[PresetPolicy, ...]:
    """Return the policies of a grid.

    Args:
        name: one of `PRESETS`.
        context: False leaves out those that read text, which need sentence-transformers.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {list(PRESETS)}, got {name!r}")
    algorithm = name.removesuffix("-modes")
    versions: Sequence[str | None] = ("standard", "ofl") if algorithm == "ppo" else (None,)
    return tuple(
        PresetPolicy(algorithm, version, reads_text, max_entropy)
        for version, reads_text, max_entropy in product(
            versions, (False, True) if context else (False,), (True, False)
        )
    )


def train_preset(
    policies: Sequence[PresetPolicy],
    inputs: PresetInputs,
    folder: str | Path,
    *,
    progress: Progress | None = None,
) -> tuple[ModeSpec, ...]:
    """Train the policies of a grid that are not trained yet, each in its own folder.

    Args:
        policies: from `preset_policies`.
        inputs: what they learn from.
        folder: of the comparison; an interrupted training there resumes.
        progress: called with a stage and the fraction done.

    Returns:
        The policies as modes of a comparison.

    Raises:
        ValueError: there are no traces, these or the cost table lack an action, or the policies in
            the folder were trained on something else. Nothing has been trained.
        ImportError: a policy reads text, and sentence-transformers is not installed.
        AlreadyLockedError: another process is training policies there.
    """
    if not inputs.traces:
        raise ValueError("traces must hold traces of questions that are not decoded, got none")
    root = Path(folder) / POLICIES_NAME
    options: dict[str, Any] = {}
    if any(policy.context_only for policy in policies):
        # Loaded before the first training, which may take hours.
        options = {
            "tokenizer": inputs.tokenizer,
            "text_model": inputs.text_model,
            "text_encoder": observations.sentence_encoder(inputs.text_model),
        }
    with exclusive_folder(root):
        _check_settings(root, inputs.to_dict())
        for index, policy in enumerate(policies):
            run = root / policy.label
            if (run / "policy" / CARD_NAME).is_file():
                continue

            def show(
                stage: str, share: float, *, done: int = index, name: str = policy.label
            ) -> None:
                if progress is not None:
                    progress(f"training {name}: {stage}", (done + share) / len(policies))

            _train(policy, inputs, run, options if policy.context_only else {}, show)
    return tuple(
        parse_mode(f"{policy.label}=policy:{root / policy.label / 'policy'}") for policy in policies
    )


def left_over(traces: Iterable[Trace], decoded: Iterable[str]) -> list[Trace]:
    """Return the traces of prompts that are not decoded.

    Args:
        traces: recorded traces.
        decoded: ids of the prompts that are decoded.
    """
    known = set(decoded)
    return [trace for trace in traces if trace.prompt_id not in known]


def _train(
    wanted: PresetPolicy,
    inputs: PresetInputs,
    run: Path,
    options: Mapping[str, Any],
    progress: Progress,
) -> None:
    own: dict[str, Any] = {}
    if wanted.version is not None:
        widths = _OFL_WIDTHS if wanted.version == "ofl" else ""
        own = version_options(wanted.version, widths)
    policy = POLICIES[wanted.algorithm](
        hidden_size=inputs.traces[0].features.shape[1],
        use_context_only_state=wanted.context_only,
        actions=inputs.actions,
        action_cache_steps=LEARNING_CACHE_STEPS,
        enable_max_entropy=wanted.max_entropy,
        max_entropy_inference=wanted.max_entropy,
        seed=inputs.seed,
        checkpoint_dir=run / "checkpoints",
        checkpoint_freq=NO_CHECKPOINTS_WITHIN,
        max_checkpoints=2,
        tensorboard_dir=run / "tensorboard",
        **own,
        **options,
    )
    learn_from_traces(
        policy, inputs.traces, inputs.cost, total_steps=inputs.steps, progress=progress
    )
    policy.describe(head_id=inputs.head_id, training={"steps": inputs.steps})
    policy.save(run / "learned")
    policy.close()
    card = read_card(run / "learned")
    write_policy_folder(
        run / "policy",
        policy.weights,
        replace(card["settings"], action_cache_steps=EVALUATION_CACHE_STEPS),
        algorithm=card["algorithm"],
        model=card["model"],
        head_id=card["head_id"],
        training=card["training"],
    )


def _check_settings(root: Path, settings: Mapping[str, Any]) -> None:
    """Record what the policies are trained on, or compare it with the record.

    Raises:
        ValueError: the policies in the folder were trained on something else.
    """
    file = root / _SETTINGS_NAME
    # As it will be read back: tuples become lists.
    now = json.loads(json.dumps(settings))
    if os.path.lexists(file):
        before = read_json(file, JsonObject, "settings of a preset")
        differing = sorted(name for name in now if now[name] != before.get(name))
        if differing:
            raise ValueError(
                f"the policies in {str(root)!r} were trained with other {', '.join(differing)}: "
                "use the same, or name another folder"
            )
        return
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
