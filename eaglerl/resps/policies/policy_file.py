"""A policy in a folder: ``model.safetensors`` and ``config.json`` of its weights, ``policy.json``.

Inference reads nothing else: no pickle, no archive of stable-baselines3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from eaglerl.files import atomic_path, exclusive_folder
from eaglerl.fingerprints import ModelId, is_same_model
from eaglerl.json_file import JsonObject, VersionedSchema, read_json
from eaglerl.ops import PolicyWeights
from eaglerl.resps.policies.policy_settings import PolicySettings, check_model_options

FORMAT = "eaglerl-tree-policy"
VERSION = 1
CARD_NAME = "policy.json"


class _CardSchema(VersionedSchema):
    algorithm: str
    head_id: str | None
    head_fingerprint: str | None = None
    settings: JsonObject
    model: JsonObject
    training: JsonObject


def write_policy_folder(
    path: str | Path,
    weights: PolicyWeights,
    settings: PolicySettings,
    *,
    algorithm: str,
    model: Mapping[str, Any],
    head_id: str | None = None,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write a policy; the card is written last: a folder without one holds no policy.

    Args:
        path: the folder.
        weights: the weights for inference.
        settings: of the policy.
        algorithm: "ppo" or "dqn".
        model: options of the algorithm, JSON values.
        head_id: hash of the draft head whose features it reads, if known.
        training: JSON values on its origin.
    """
    folder = Path(path)
    card = {
        "format": FORMAT,
        "version": VERSION,
        "algorithm": algorithm,
        "head_id": head_id,
        "head_fingerprint": getattr(head_id, "fingerprint", None),
        "settings": settings.to_dict(),
        "model": dict(model),
        "training": dict(training or {}),
    }
    text = json.dumps(card, indent=1) + "\n"
    with exclusive_folder(folder):
        weights.write_into(folder)
        with atomic_path(folder / CARD_NAME) as temporary:
            temporary.write_text(text, encoding="utf-8")


def read_card(path: str | Path, *, algorithm: str | None = None) -> dict[str, Any]:
    """Read a policy's card; its entry "settings" becomes `PolicySettings`.

    Args:
        path: the policy's folder.
        algorithm: algorithm that the policy must have; None accepts any.

    Raises:
        ValueError: the folder holds no such policy, or one of another algorithm.
    """
    folder = Path(path)
    if folder.is_file():
        raise ValueError(
            f"path must be the folder of a policy, got the file {str(path)!r}; archives and "
            "pickles are never opened"
        )
    file = folder / CARD_NAME
    where = f"the policy's card {str(file)!r}"
    card = read_json(file, _CardSchema, "policy's card", form=(FORMAT, VERSION))
    if algorithm is not None and card.algorithm != algorithm:
        raise ValueError(
            f"the policy in {str(folder)!r} is of the algorithm {card.algorithm!r}, "
            f"wanted {algorithm!r}"
        )
    try:
        check_model_options(card.model)
        settings = PolicySettings.from_dict(card.settings)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error
    known = card.head_id and ModelId(card.head_id, card.head_fingerprint)
    return {**dict(card), "head_id": known, "settings": settings}


def read_weights(path: str | Path, settings: PolicySettings) -> PolicyWeights:
    """Read the weights of a policy whose card was read.

    Raises:
        ValueError: the weights cannot be read, or do not fit the card.
    """
    weights = PolicyWeights.from_pretrained(path)
    check_weights(weights, settings, f"the weights in {str(path)!r}")
    return weights


def check_weights(weights: PolicyWeights, settings: PolicySettings, name: str) -> None:
    """Check that weights are of a policy's observations and actions.

    Raises:
        ValueError: they are not; the message names both.
    """
    if weights.mlp_in_features != settings.spec.size:
        raise ValueError(
            f"{name} must read observations of width {settings.spec.size}, got "
            f"{weights.mlp_in_features}"
        )
    if not torch.equal(weights.actions.cpu(), settings.actions.tensor):
        raise ValueError(
            f"{name} must choose from {settings.actions}, got {weights.num_actions} actions "
            "that differ"
        )


def check_wanted(card: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Check that a policy is of the width, actions and draft head that it is to be used with.

    Args:
        card: from `read_card`.
        wanted: "hidden_size", "actions" and "head_id", as far as known; None accepts any.

    Raises:
        ValueError: one differs; the message names both. The same head at another precision causes
            a warning.
    """
    settings: PolicySettings = card["settings"]
    own = {
        "hidden_size": settings.spec.hidden_size,
        "actions": settings.actions,
        "head_id": card["head_id"],
    }
    for name, value in wanted.items():
        if name == "head_id":
            fits = is_same_model(own[name], value, name, "the policy")
        else:
            fits = value is None or own[name] is None or value == own[name]
        if not fits:
            raise ValueError(f"{name} of the policy is {own[name]}, wanted {value}")
