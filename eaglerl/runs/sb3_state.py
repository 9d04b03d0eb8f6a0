"""The whole state of a stable-baselines3 model as tensors and JSON values, without a pickle.

It holds parameters, optimizer, buffers, counters and the state of every random generator, so that a
killed run can be resumed bit for bit.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict, JsonValue
from torch import Tensor

from eaglerl.json_file import AnyObject, Count, Items, Schema, check_json

_COUNTERS = (
    "num_timesteps",
    "_n_updates",
    "_n_calls",
    "_episode_num",
    "_total_timesteps",
    "_current_progress_remaining",
    "exploration_rate",
)


class BufferState(Schema):
    """How far a buffer is filled."""

    pos: Count
    full: bool


class ModelState(Schema):
    """The JSON values of `model_state`; the generators check their own states."""

    model_config = ConfigDict(extra="allow")

    num_timesteps: Count
    buffer: BufferState
    episodes: Items[AnyObject]
    numpy_draws: Items[JsonValue]
    python_draws: Items[JsonValue]
    action_draws: AnyObject


_REPLAY_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
_ROLLOUT_ARRAYS = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs")


def model_state(model: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `load_model_state` needs to resume a PPO or DQN.

    Args:
        model: the model, between two rollouts or while the caller collects one.

    Returns:
        Tensors and JSON values.
    """
    # Actor and critic may share layers; safetensors does not save shared storage.
    parameters = model.policy.state_dict()
    tensors = {f"policy.{name}": value.clone() for name, value in parameters.items()}
    for index, values in model.policy.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    for name in ("_last_obs", "_last_episode_starts"):
        value = getattr(model, name)
        if value is not None:
            tensors[name] = torch.from_numpy(np.array(value))
    buffer, names = _buffer(model)
    pos, full = buffer.pos, buffer.full
    if full and names is _ROLLOUT_ARRAYS:
        # PPO learns from a full buffer at once, and clears it: this update is done.
        pos, full = 0, False
    filled = buffer.buffer_size if full else pos
    if _shares_observations(buffer):
        # Such a buffer keeps the next observation in the next row.
        filled = min(filled + 1, buffer.buffer_size)
    for name in names:
        if filled:
            tensors[f"buffer.{name}"] = torch.from_numpy(np.array(getattr(buffer, name)[:filled]))
    info: dict[str, Any] = {
        name: getattr(model, name) for name in _COUNTERS if hasattr(model, name)
    }
    info["buffer"] = {"pos": pos, "full": full}
    info["episodes"] = [dict(episode) for episode in model.ep_info_buffer or ()]
    tensors["torch_draws"] = torch.get_rng_state()
    name, keys, *rest = np.random.get_state(legacy=True)
    info["numpy_draws"] = [name, np.asarray(keys).tolist(), *rest]
    version, values, gauss = random.getstate()
    info["python_draws"] = [version, list(values), gauss]
    info["action_draws"] = model.action_space.np_random.bit_generator.state
    return tensors, info


def load_model_state(model: Any, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
    """Restore the state that `model_state` returned, into a model of the same settings.

    Raises:
        ValueError: the state belongs to another model.
    """
    saved = check_json(info, ModelState, "the model's state")
    policy = _with_prefix(tensors, "policy.")
    try:
        model.policy.load_state_dict(policy)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint belongs to another network: {error}") from error
    optimizer = model.policy.optimizer.state_dict()
    optimizer["state"] = {}
    for key, value in _with_prefix(tensors, "optimizer.").items():
        index, name = key.split(".", 1)
        optimizer["state"].setdefault(int(index), {})[name] = value
    model.policy.optimizer.load_state_dict(optimizer)
    for name in ("_last_obs", "_last_episode_starts"):
        if name in tensors:
            setattr(model, name, tensors[name].numpy().copy())
    buffer, names = _buffer(model)
    for name in names:
        if f"buffer.{name}" in tensors:
            values = tensors[f"buffer.{name}"].numpy()
            getattr(buffer, name)[: len(values)] = values
    _set_filled(buffer, saved.buffer)
    for name in _COUNTERS:
        if name in info:
            setattr(model, name, info[name])
    if model.ep_info_buffer is not None:
        model.ep_info_buffer.clear()
        model.ep_info_buffer.extend(info["episodes"])
    torch.set_rng_state(tensors["torch_draws"])
    name, keys, *rest = info["numpy_draws"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    version, values, gauss = info["python_draws"]
    random.setstate((version, tuple(values), gauss))
    model.action_space.np_random.bit_generator.state = info["action_draws"]


def _set_filled(buffer: Any, saved: BufferState) -> None:
    if saved.pos > buffer.buffer_size:
        raise ValueError(
            f"the buffer's position must be at most {buffer.buffer_size}, got {saved.pos}"
        )
    buffer.pos, buffer.full = saved.pos, saved.full


def _buffer(model: Any) -> tuple[Any, tuple[str, ...]]:
    replay = getattr(model, "replay_buffer", None)
    if replay is None:
        return model.rollout_buffer, _ROLLOUT_ARRAYS
    names: tuple[str, ...] = _REPLAY_ARRAYS
    if _shares_observations(replay):
        names = tuple(name for name in names if name != "next_observations")
    return replay, names


def _shares_observations(buffer: Any) -> bool:
    return bool(getattr(buffer, "optimize_memory_usage", False))


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
