"""Policies as the command and the scripts of Re-SpS set them up, new or saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from eaglerl.actions import ActionSpace
from eaglerl.eagle3.decoder import SpeculativeDecoder
from eaglerl.envs import observations
from eaglerl.fingerprints import head_id
from eaglerl.resps.flags import FlagError, ReSpSFlags, flag_name
from eaglerl.resps.policies.load_saved import POLICIES
from eaglerl.resps.policies.policy_file import check_wanted, read_card, read_weights
from eaglerl.resps.policies.resps_policy import ReSpSPolicy

Version = Literal["standard", "ofl"]

#: Checkpoints are written between sequences, never within one.
NO_CHECKPOINTS_WITHIN = 2**31
#: Re-SpS has two PPOs. They differ in code and networks; this is what affects inference.
VERSIONS: Mapping[str, Mapping[str, Any]] = {
    "standard": {"net_arch": (512, 256, 128), "activation": "relu"},
    "ofl": {"net_arch": (64, 64), "activation": "tanh"},
}
#: Entropy bonus without max-entropy, as in the command of Re-SpS.
_ENTROPY = 0.01


def version_options(version: str, net_arch: str = "") -> dict[str, Any]:
    """Return the arguments of PPO for one of the two versions of Re-SpS.

    Args:
        version: "standard" or "ofl".
        net_arch: widths ``N,...`` of actor and critic, or with "ofl" ``N,...;N,...`` for one each;
            empty for the version's own.

    Raises:
        ValueError: the version is unknown, or the widths have another form.
    """
    if version not in get_args(Version):
        raise ValueError(
            f"optimized_policy_version must be one of {get_args(Version)}, got {version!r}"
        )
    options = {**VERSIONS[version], "ent_coef": _ENTROPY}
    if net_arch:
        parts = [_widths(part, net_arch) for part in net_arch.split(";")]
        if len(parts) > (2 if version == "ofl" else 1):
            raise ValueError(
                f"ppo_net_arch must be N,... or, with the version ofl, N,...;N,..., got "
                f"{net_arch!r} with {version}"
            )
        options["net_arch"] = parts[0] if len(parts) == 1 else {"pi": parts[0], "vf": parts[1]}
    return options


def new_policy(
    flags: ReSpSFlags,
    decoder: SpeculativeDecoder,
    actions: ActionSpace,
    checkpoint_dir: Path,
) -> ReSpSPolicy:
    """Return an untrained policy.

    Args:
        flags: of a command with a new policy.
        decoder: the decoder that it chooses trees for.
        actions: trees to choose from.
        checkpoint_dir: where its checkpoints are written.

    Raises:
        ValueError: a value is out of its range, or the width is not that of the head.
        ImportError: the state is text and sentence-transformers is not installed.
    """
    options: dict[str, Any] = {}
    if flags.algorithm == "ppo":
        options = version_options(flags.optimized_policy_version, flags.ppo_net_arch)
    if flags.use_context_only_state or not flags.use_eagle3_features:
        options["text_model"] = text_model_of(flags.text_model)
        options["text_encoder"] = observations.sentence_encoder(options["text_model"])
    return POLICIES[str(flags.algorithm)](
        hidden_size=flags.hidden_size or observations.draft_head_of(decoder).config.hidden_size,
        use_eagle3_features=flags.use_eagle3_features,
        use_context_only_state=flags.use_context_only_state,
        actions=actions,
        action_cache_steps=flags.action_cache_steps,
        action_cache_enabled=flags.action_cache_enabled,
        enable_max_entropy=flags.enable_max_entropy,
        max_entropy_inference=flags.draws_at_inference,
        inference_temperature=flags.inference_temperature,
        seed=flags.training_seed,
        **options,
        **_running(flags, decoder, checkpoint_dir),
    )


def text_model_of(given: str | None) -> str:
    """Return a text model as it is saved with a policy: a folder by its absolute path."""
    if given is None:
        return observations.TEXT_MODEL
    return str(Path(given).resolve()) if Path(given).is_dir() else given


def saved_policy(
    flags: ReSpSFlags, decoder: SpeculativeDecoder, checkpoint_dir: Path
) -> ReSpSPolicy:
    """Return a saved policy, with the changes that the flags make.

    Args:
        flags: of a command with ``online_policy_path``.
        decoder: the decoder that it chooses trees for.
        checkpoint_dir: where its checkpoints are written if it continues to learn.

    Raises:
        ValueError: the folder holds no such policy, the policy is of another head or width, or a
            flag has no effect on it.
        ImportError: the state is text and sentence-transformers is not installed.
    """
    path = Path(str(flags.online_policy_path))
    card = read_card(path, algorithm=flags.algorithm)
    own = head_id(observations.draft_head_of(decoder))
    check_wanted(card, {"hidden_size": flags.hidden_size, "head_id": own})
    if flags.hidden_size is not None and card["settings"].spec.source == "context":
        name = flag_name("hidden_size", flags.hidden_size)
        raise FlagError(name, "it has no effect: the saved policy reads a text's embedding")
    changes = {
        name: getattr(flags, name)
        for name in (
            "action_cache_steps", "action_cache_enabled", "inference_temperature",
            "max_entropy_inference", "enable_max_entropy",
        )
        if name in flags.given
    }  # fmt: skip
    if flags.learns and "training_seed" in flags.given:
        changes["seed"] = flags.training_seed
    if changes.get("enable_max_entropy") is False:
        changes.setdefault("max_entropy_inference", False)
    settings = replace(card["settings"], **changes)
    if "inference_temperature" in changes and not settings.max_entropy_inference:
        name = flag_name("inference_temperature", flags.inference_temperature)
        raise FlagError(name, "it has no effect: the saved policy takes the best action")
    running = _running(flags, decoder, checkpoint_dir)
    if settings.reads_text:
        running["text_encoder"] = observations.sentence_encoder(settings.text_model)
    policy = POLICIES[card["algorithm"]](settings=settings, **card["model"], **running)
    policy.use_weights(read_weights(path, settings))
    policy.describe(head_id=card["head_id"], training=card["training"])
    return policy


def _running(
    flags: ReSpSFlags, decoder: SpeculativeDecoder, checkpoint_dir: Path
) -> dict[str, Any]:
    """Return the options that belong to the run, not to the policy."""
    running: dict[str, Any] = {"head": decoder.draft_head, "tokenizer": decoder.tokenizer}
    if flags.learns:
        running |= {"checkpoint_dir": checkpoint_dir, "checkpoint_freq": NO_CHECKPOINTS_WITHIN}
    if flags.wandb or (flags.wandb_project is not None):
        running |= {"use_wandb": True, "wandb_project": flags.wandb_project or "eaglerl"}
    return running


def _widths(text: str, whole: str) -> Sequence[int]:
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError:
        widths = ()
    if not widths or min(widths) < 1:
        raise ValueError(f"ppo_net_arch must be whole numbers such as 64,64, got {whole!r}")
    return widths
