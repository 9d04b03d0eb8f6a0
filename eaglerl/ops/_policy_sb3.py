"""Reads the actor of a stable-baselines3 model, and checks that its layers alone decide.

A model may scale or transpose its observations, extract features, squash, mask, keep a state or
read statistics from elsewhere. All of these show in its `predict`, which is compared with the
layers' own decisions on random observations. stable-baselines3 itself is not imported here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from eaglerl.ops._encode_reference import mlp_layers
from eaglerl.ops._policy_fields import PolicyFields
from eaglerl.ops.undisturbed import undisturbed

_Weights = TypeVar("_Weights", bound=PolicyFields)

# Random observations for each scale, and as many drawn uniformly from the whole space.
_ROWS = 256
_SCALES = (0.1, 1.0, 10.0, 100.0)
# Bounds beyond this say nothing about the size of observations.
_FAR = 1e6
# See `_roundings`.
_ROUNDINGS = 16
# Change that folding may cause, as a share of the distance from the worst to the best score.
_IMMATERIAL = 1e-4
# Share of normally distributed observations that VecNormalize's clipping may change.
_MOST_CLIPPED = 0.01


def read_layers(model: Any) -> list[nn.Module]:
    """Return the layers from a model's observations to the scores of its actions.

    Raises:
        ValueError: it is not a PPO, A2C or DQN with an MLP.
    """
    policy = getattr(model, "policy", None)
    q_net = getattr(policy, "q_net", None)
    if q_net is not None and isinstance(getattr(q_net, "q_net", None), nn.Sequential):
        return list(q_net.q_net)
    actor = getattr(getattr(policy, "mlp_extractor", None), "policy_net", None)
    output = getattr(policy, "action_net", None)
    if isinstance(actor, nn.Sequential) and isinstance(output, nn.Linear):
        return [*actor, output]
    raise ValueError(f"model must be a PPO, A2C or DQN with MlpPolicy, got {type(policy).__name__}")


def read_horizon(model: Any, actions: int) -> int:
    """Return the number of decisions that a model makes at once.

    Args:
        model: the model.
        actions: a, the number of actions.

    Raises:
        ValueError: its action space does not have A actions.
    """
    space = model.action_space
    counts = getattr(space, "nvec", None)
    if counts is not None:
        counts = np.asarray(counts).tolist()
        if len(set(np.ravel(counts).tolist())) != 1:
            raise ValueError(
                f"model must have the same number of actions for every step, got {counts}"
            )
    # Discrete is a scalar; MultiBinary has an n as well.
    discrete = getattr(space, "n", None) if getattr(space, "shape", None) == () else None
    found = discrete if counts is None else np.ravel(counts)[0]
    if found is None or int(found) != actions:
        raise ValueError(
            "model must have an action space of horizon * actions, Discrete(A) or "
            f"MultiDiscrete([A] * horizon), with A = {actions}, the number of actions; got {space}"
        )
    return 1 if counts is None else len(counts)


def check_observations(model: Any, first: nn.Module) -> None:
    """Check that a model can feed its observations to its first layer unchanged.

    Raises:
        ValueError: it cannot.
    """
    space = model.observation_space
    if getattr(space, "low", None) is None or getattr(space, "high", None) is None:
        raise ValueError(f"model must have a Box as its observation space, got {space}")
    shape, width = space.shape, getattr(first, "in_features", None)
    # An array with three axes is an image, which models scale and transpose.
    if len(shape) > 2 or int(np.prod(shape)) != width:
        raise ValueError(
            f"model must feed its observations unchanged to its first layer, which reads {width} "
            f"numbers; got observations of shape {tuple(shape)}, through "
            f"{_extractor(model.policy)}"
        )


def _extractor(policy: Any) -> str:
    """Return the type name of the feature extractor before the first layer."""
    for owner in (policy, getattr(policy, "q_net", None)):
        for name in ("pi_features_extractor", "features_extractor"):
            if (found := getattr(owner, name, None)) is not None:
                return type(found).__name__
    return "an unknown feature extractor"


def check_normalization(model: Any, vec_normalize: Any) -> None:
    """Check that no wrapper other than `vec_normalize` standardises the observations.

    Raises:
        ValueError: one does.
    """
    if vec_normalize is not None:
        _check_kind(vec_normalize)
    for wrapper in _others(model, vec_normalize):
        name = type(wrapper).__name__
        if getattr(wrapper, "norm_obs", True) and getattr(wrapper, "obs_rms", None) is not None:
            if vec_normalize is not None:
                raise ValueError(
                    f"model was trained on observations standardised by {name} besides "
                    "vec_normalize: only one can be folded into the first layer"
                )
            raise ValueError(
                f"model was trained on observations standardised by {name}: give "
                "vec_normalize=model.get_vec_normalize_env(), so that its statistics are folded "
                "into the first layer"
                + ("" if hasattr(wrapper, "clip_obs") else f"; those of {name} cannot be folded")
            )
        if getattr(wrapper, "standardization", None) is not None:
            raise ValueError(
                f"model was trained on observations standardised by {name}: fold its "
                "standardization into the weights (Standardization.fold_into) after a conversion "
                "with model.env = None"
            )
    if vec_normalize is not None:
        return
    if getattr(model, "_last_original_obs", None) is not None:
        raise ValueError(
            "model was trained with a VecNormalize that was not loaded with it: give "
            "vec_normalize=VecNormalize.load(path, env)"
        )


def _check_kind(vec_normalize: Any) -> None:
    for name in ("norm_obs", "normalize_obs", "clip_obs", "epsilon", "obs_rms"):
        # Without normalisation there are no statistics.
        if name == "obs_rms" and not vec_normalize.norm_obs:
            continue
        if not hasattr(vec_normalize, name):
            raise ValueError(
                f"vec_normalize must be a VecNormalize, got {type(vec_normalize).__name__}, "
                f"which has no {name}"
            )


def _others(model: Any, vec_normalize: Any) -> list[Any]:
    """Return the wrappers around a model except the given one."""
    known = vec_normalize
    if vec_normalize is not None and not any(one is vec_normalize for one in _wrappers(model)):
        # One loaded from a file replaces the model's own.
        known = getattr(model, "_vec_normalize_env", None)
    return [
        one
        for one in _wrappers(model, vec_normalize)
        if one is not vec_normalize and one is not known
    ]


def _wrappers(model: Any, beside: Any = None) -> Iterator[Any]:
    """Yield the environments and wrappers around a model and around `beside`, outermost first."""
    waiting = [getattr(model, "env", None), getattr(model, "_vec_normalize_env", None), beside]
    seen: list[Any] = []
    while waiting:
        env = waiting.pop(0)
        if env is None or any(env is one for one in seen):
            continue
        seen.append(env)
        yield env
        own = vars(env) if hasattr(env, "__dict__") else {}
        waiting += [own.get("venv"), own.get("env"), *(own.get("envs") or ())]


def fold_normalization(weights: _Weights, vec_normalize: Any) -> _Weights:
    """Multiply VecNormalize's statistics into the first layer, without its clipping.

    W1 ((x - m) / s) + b1 = (W1 / s) x + (b1 - (W1 / s) m), computed in float64.

    Raises:
        ValueError: the statistics are of observations of another width.
    """
    if not vec_normalize.norm_obs:
        return weights
    mean, scale = _statistics(vec_normalize)
    first = weights.hidden_weights[0]
    if mean.shape != (first.shape[1],):
        raise ValueError(
            f"vec_normalize must have statistics of {first.shape[1]} numbers, got {mean.shape}"
        )
    scaled = first.double() / torch.from_numpy(scale).to(first.device)
    shift = scaled @ torch.from_numpy(mean).to(first.device)
    bias = weights.hidden_biases[0]
    return replace(
        weights,
        hidden_weights=(scaled.to(first.dtype), *weights.hidden_weights[1:]),
        hidden_biases=((bias.double() - shift).to(bias.dtype), *weights.hidden_biases[1:]),
    )


def _statistics(vec_normalize: Any) -> tuple[np.ndarray, np.ndarray]:
    rms = vec_normalize.obs_rms
    if isinstance(rms, dict) or not hasattr(rms, "mean"):
        raise ValueError(
            f"vec_normalize must have statistics of one array, got {type(rms).__name__}"
        )
    mean = np.asarray(rms.mean, dtype=np.float64).ravel()
    return mean, np.sqrt(np.asarray(rms.var, dtype=np.float64).ravel() + vec_normalize.epsilon)


def check_reproduced(
    model: Any,
    weights: PolicyFields,
    vec_normalize: Any = None,
    unfolded: PolicyFields | None = None,
) -> None:
    """Check that weights decide as a model predicts, on random observations.

    The model, its mode and all random states are left unchanged.

    Args:
        model: the model.
        weights: the weights that are to decide like the model.
        vec_normalize: the normalisation of the model's observations, if any.
        unfolded: the model's own layers, if something is folded into `weights`; they determine the
            model's rounding.

    Raises:
        ValueError: they differ by more than rounding. The message says on what share.
    """
    seen = normalized = _observations(model.observation_space)
    if vec_normalize is not None and vec_normalize.norm_obs:
        seen, normalized = _unclipped(model.observation_space, vec_normalize)
    with undisturbed([model.policy]):
        predicted, state = model.predict(normalized, deterministic=True)
        scores = _scores(model.policy, normalized)
    predicted = np.asarray(predicted)
    count = len(seen)
    if state is not None:
        raise ValueError("model must decide by its observations alone, got one with a state")
    if not np.issubdtype(predicted.dtype, np.integer) or predicted.size != count * weights.horizon:
        raise ValueError(
            f"model must predict {weights.horizon} action numbers, got {predicted.dtype} "
            f"of shape {predicted.shape[1:]} for {model.action_space}"
        )
    rows = (
        torch.from_numpy(part.reshape(count, -1).astype(np.float32)) for part in (seen, normalized)
    )
    ours = mlp_layers(next(rows), weights.to("cpu"))[-1].double()
    rounding = _roundings(next(rows).double(), unfolded or weights)
    spread = ours.unflatten(-1, (-1, weights.num_actions))
    spread = spread.amax(-1, keepdim=True) - spread.amin(-1, keepdim=True)
    rounding = rounding + (_IMMATERIAL * spread).expand(-1, -1, weights.num_actions).flatten(1)
    actions = torch.from_numpy(predicted.reshape(count, weights.horizon).astype(np.int64))
    wrong = _decided_otherwise(ours, rounding, actions, weights.num_actions)
    what = "decides differently than"
    if not bool(wrong.any()) and scores is not None:
        wrong = _scored_otherwise(ours, rounding, scores, weights.num_actions)
        what = "scores its actions differently than"
    if bool(wrong.any()):
        raise ValueError(
            f"model {what} its layers on {float(wrong.double().mean()):.1%} of {count} random "
            f"observations: whatever else {type(model.policy).__name__} and "
            f"{_extractor(model.policy)} do (scaling images, extracting features, a state, a mask) "
            "is not reproduced"
        )


def _observations(space: Any) -> np.ndarray:
    """Return random members of a Box: normal at several scales, and uniform over the Box."""
    draw = np.random.default_rng(0)
    low, high = (np.asarray(bound, dtype=np.float64) for bound in (space.low, space.high))
    parts = [scale * draw.standard_normal((_ROWS, *space.shape)) for scale in _SCALES]
    near = np.maximum(low, -_FAR), np.minimum(high, _FAR)
    parts.append(draw.uniform(np.minimum(*near), np.maximum(*near), (_ROWS, *space.shape)))
    values = np.clip(np.concatenate(parts), low, high)
    if np.issubdtype(space.dtype, np.integer):
        values = np.rint(values)
    return values.astype(space.dtype)


def _unclipped(space: Any, vec_normalize: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return observations drawn from the statistics, before and after VecNormalize.

    Raises:
        ValueError: clipping would change more than 1 % of them.
    """
    mean, scale = _statistics(vec_normalize)
    draw = np.random.default_rng(0).standard_normal((4 * _ROWS, len(mean)))
    clip = float(vec_normalize.clip_obs)
    clipped = (np.abs(draw) >= clip).any(axis=1)
    if clipped.mean() > _MOST_CLIPPED:
        raise ValueError(
            f"vec_normalize must not clip common observations: clip_obs={clip:g} changes "
            f"{clipped.mean():.1%} of normally distributed observations of {len(mean)} numbers, "
            "and clipping cannot be folded into a layer"
        )
    low, high = (np.asarray(bound, dtype=np.float64).ravel() for bound in (space.low, space.high))
    if ((low - mean) / scale < -clip).any() or ((high - mean) / scale > clip).any():
        warnings.warn(
            f"clip_obs={clip:g} is not reproduced: an observation more than {clip:g} standard "
            "deviations from the mean is used unchanged, where VecNormalize would clip it",
            stacklevel=4,
        )
    seen = np.clip(mean + scale * draw[~clipped], low, high).astype(np.float32)
    seen = seen.reshape(-1, *space.shape)
    return seen, np.asarray(vec_normalize.normalize_obs(seen))


def _scores(policy: Any, observations: np.ndarray) -> Tensor | None:
    """Return the policy's own scores (n, horizon * A) in float64; None if it has none."""
    if not hasattr(policy, "obs_to_tensor"):
        return None
    rows = policy.obs_to_tensor(observations)[0]
    if getattr(policy, "q_net", None) is not None:
        return policy.q_net(rows).double().cpu()
    if not hasattr(policy, "get_distribution"):
        return None
    found: Any = getattr(policy.get_distribution(rows), "distribution", None)
    parts: list[Any] = found if isinstance(found, list) else [found]
    if not all(hasattr(part, "logits") for part in parts):
        return None
    return torch.cat([part.logits for part in parts], dim=-1).double().cpu()


def _roundings(rows: Tensor, weights: PolicyFields) -> Tensor:
    """Estimate how far rounding may move each of the scores (n, horizon * A).

    Each layer's sum is off by a few units of the sum of its terms' magnitudes, and the next layer
    passes the error on: no activation has a slope above 1.1.
    """
    unit = max(torch.finfo(dtype).eps for dtype in (torch.float32, weights.dtype)) * _ROUNDINGS
    weights = weights.to("cpu", torch.float64)
    error = torch.zeros_like(rows)
    layers = zip(
        (*weights.hidden_weights, weights.output_weight),
        (*weights.hidden_biases, weights.output_bias),
        strict=True,
    )
    inputs = mlp_layers(rows, weights)
    for value, (weight, bias) in zip(inputs, layers, strict=False):
        size = value.abs() @ weight.abs().T + bias.abs()
        error = 1.1 * error @ weight.abs().T + unit * size
    return error


def _decided_otherwise(ours: Tensor, rounding: Tensor, actions: Tensor, count: int) -> Tensor:
    """Return (n,) whether an action's score is below the best by more than rounding.

    Ties may be broken either way.
    """
    out_of_range = ((actions < 0) | (actions >= count)).any(-1)
    chosen = actions.clamp(0, count - 1)[..., None]
    scores, rounding = (x.unflatten(-1, (-1, count)) for x in (ours, rounding))
    best, place = scores.max(-1, keepdim=True)
    behind = best - scores.gather(-1, chosen)
    allowed = rounding.gather(-1, chosen) + rounding.gather(-1, place)
    return (behind > allowed).any(-1).any(-1) | out_of_range


def _scored_otherwise(ours: Tensor, rounding: Tensor, theirs: Tensor, count: int) -> Tensor:
    """Return (n,) whether scores differ by more than a constant for each decision."""
    if theirs.shape != ours.shape:
        return torch.ones(len(ours), dtype=torch.bool)
    difference, rounding = (x.unflatten(-1, (-1, count)) for x in (theirs - ours, rounding))
    difference = difference - difference.median(-1, keepdim=True).values
    # A log-softmax of large scores rounds once more.
    size = theirs.unflatten(-1, (-1, count)).abs().amax(-1, keepdim=True)
    allowed = 2 * rounding.amax(-1, keepdim=True) + 1e-6 * size
    return (difference.abs() > allowed).any(-1).any(-1)
