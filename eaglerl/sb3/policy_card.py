"""The model card of a policy that was trained by reinforcement learning."""

from __future__ import annotations

from pathlib import Path

from pydantic import ConfigDict

from eaglerl.files import atomic_path
from eaglerl.json_file import Count, Items, Schema, Size, check_json
from eaglerl.resps.policies.policy_file import read_card

_CLASSES = {
    "ppo": "OptimizedSB3DiscretePPOOnlineTreePolicy",
    "dqn": "OptimizedOnlineTreePolicy",
}


class _OptionsSchema(Schema):
    model_config = ConfigDict(extra="ignore")

    extras: Items[str]
    net_arch: Items[Size]
    reward: str
    gamma: float
    learning_rate: float
    seed: Count


class _CostSchema(Schema):
    model_config = ConfigDict(extra="ignore")

    machine: str
    draft_dtype: str


class _DataSchema(Schema):
    model_config = ConfigDict(extra="ignore")

    cost: _CostSchema | None = None


class _TrainingSchema(Schema):
    """The entry that `train_policy` writes about the training."""

    model_config = ConfigDict(extra="ignore")

    options: _OptionsSchema
    data: _DataSchema
    steps: Count
    prompts: Count
    held_out_prompts: Count
    validation_tokens_per_second: float | None
    constant_tokens_per_second: float | None


def write_policy_card(folder: str | Path) -> None:
    """Write ``README.md`` from the ``policy.json`` beside it.

    Args:
        folder: of a policy that `train_policy` or `train_policy_live` has saved.

    Raises:
        ValueError: the folder holds no such policy.
    """
    folder = Path(folder)
    card = read_card(folder)
    settings = card["settings"]
    where = f"the entry 'training' of the policy's card in {str(folder)!r}"
    training = check_json(card["training"], _TrainingSchema, where)
    options = training.options
    trees = ", ".join("/".join(map(str, tree)) for tree in settings.actions.tensor.tolist())
    extras = f" and {', '.join(options.extras)}" if options.extras else ""
    widths = " and ".join(map(str, options.net_arch))
    lines = [
        "---",
        "tags: [eagle3, speculative-decoding, stable-baselines3]",
        "---",
        "",
        f"# {card['algorithm'].upper()} policy",
        "",
        f"Chooses one of {len(settings.actions)} draft trees for {settings.interval} cycles",
        f"(`eaglerl.resps.policies.{_CLASSES[card['algorithm']]}`). Trained by",
        f"`eaglerl train-policy --algorithm {card['algorithm']}`.",
        "",
        "| | |",
        "|---|---|",
        f"| head | `{card['head_id']}` |",
        f"| reads | the head's fused features, {settings.hidden_size}{extras} |",
        f"| trees (T/D/K) | {trees} |",
        f"| net | hidden layers of {widths} |",
        f"| learned from | {training.steps:,} windows of {training.prompts:,} prompts |",
        f"| reward | {options.reward}, discount {options.gamma:g}, "
        f"learning rate {options.learning_rate:g}, seed {options.seed} |",
        *_cost(training.data.cost),
        *_held_out(training),
    ]
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cost(cost: _CostSchema | None) -> list[str]:
    if cost is None:
        return ["| cost | the clock |"]
    return [f"| cost table | {cost.machine}, draft in {cost.draft_dtype} |"]


def _held_out(training: _TrainingSchema) -> list[str]:
    speed, constant = training.validation_tokens_per_second, training.constant_tokens_per_second
    if speed is None or not constant:
        return []
    return [
        "",
        f"On {training.held_out_prompts:,} prompts held out, by which the checkpoint was",
        f"chosen, it decodes {speed:.1f} tokens/s by the cost table, the constant tree that is",
        f"best on the others {constant:.1f}: {100 * (speed / constant - 1):+.1f} %.",
    ]
