"""Environments over recorded traces: deterministic, and thousands of times faster than decoding.

One step is one cache window: the cycles that share an action; or several windows, decided at once.
An episode is one prompt's continuation. The observation is the draft head's reduction g of the last
token's features, followed by the extras; the action is an index into an `ActionSpace`, or one for
each window.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices

from eaglerl.actions import ActionSpace
from eaglerl.cost.cost_table import CostTable
from eaglerl.envs.action_repeat import check_keeping
from eaglerl.envs.rewards import RewardName, WindowReward
from eaglerl.envs.trace_windows import TraceWalk, TraceWindows
from eaglerl.traces.trace_set import Trace


def observation_space(size: int) -> gym.spaces.Box:
    """Return the space of observations, live and on traces."""
    return gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)


def action_space(count: int, horizon: int = 1) -> gym.spaces.Space:
    """Return the space of decisions, live and on traces: an action, or one for each window."""
    if horizon == 1:
        return gym.spaces.Discrete(count)
    return gym.spaces.MultiDiscrete([count] * horizon)


def check_action(space: gym.spaces.Space, action: object) -> np.ndarray:
    """Return a decision as (horizon,) int64.

    Raises:
        ValueError: the decision is not in the space.
    """
    given = np.asarray(action, dtype=np.int64)
    if not space.contains(given):
        if isinstance(space, gym.spaces.Discrete):
            raise ValueError(f"action must lie in 0..{space.n - 1}, got {action}")
        assert isinstance(space, gym.spaces.MultiDiscrete)  # `action_space` makes no others
        raise ValueError(
            f"action must be {len(space.nvec)} numbers in 0..{space.nvec[0] - 1}, got {action}"
        )
    return np.atleast_1d(given)


class TraceEnv(gym.Env):
    """One trace at a time, for any library that uses gymnasium.

    `reset` draws a trace; ``options={"trace": index}`` names one. ``info`` holds the window's
    ``tokens``, ``seconds`` and ``cycles``.

    Attributes:
        actions: the actions.
        reward: the reward, with its running rate.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        traces: Iterable[Trace],
        actions: ActionSpace,
        cost: CostTable,
        *,
        cache_steps: int = 10,
        extras: Sequence[str] = (),
        similarity_threshold: float | None = None,
        horizon: int = 1,
        reward: RewardName = "tokens",
    ) -> None:
        """Set up.

        Args:
            traces: recorded continuations.
            actions: trees to choose from.
            cost: time of the cycles.
            cache_steps: cycles of a window.
            extras: of "acceptance" (running acceptance length), "position" (tokens of context, in
                thousands) and "confidence" (log-probabilities of the newest first draft pass of an
                earlier cycle).
            similarity_threshold: ends a window early, see `ActionRepeat`.
            horizon: windows per action; above 1, an action is a vector.
            reward: see `WindowReward`.

        Raises:
            ValueError: see `TraceWindows`, `check_keeping` and `WindowReward`.
        """
        check_keeping(similarity_threshold, horizon)
        self._windows = TraceWindows(
            traces, actions, cost, cache_steps=cache_steps, extras=extras,
            similarity_threshold=similarity_threshold,
        )  # fmt: skip
        self.actions = actions
        self.reward = WindowReward(reward, initial_rate=1.0 / float(cost.verify_seconds(1, 0)))
        self.observation_space = observation_space(self._windows.observation_size)
        self.action_space = action_space(len(actions), horizon)
        self._walk = TraceWalk(self._windows, np.zeros(1, dtype=np.int64))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a trace; a seed restarts the draws and the rate.

        Raises:
            ValueError: ``options["trace"]`` is not the index of a trace.
        """
        super().reset(seed=seed)
        if seed is not None:
            self.reward.reset()
        count = len(self._windows.starts)
        index = (options or {}).get("trace")
        if index is None:
            index = int(self.np_random.integers(count))
        if not 0 <= index < count:
            raise ValueError(f'options["trace"] must lie in 0..{count - 1}, got {index}')
        self._walk = TraceWalk(self._windows, np.array([index]))
        return self._walk.observe()[0], {"trace": index}

    def step(
        self, action: int | np.ndarray
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Replay one cache window per action.

        Raises:
            ValueError: an action is out of range.
        """
        tokens, seconds, cycles, ended = self._walk.advance(
            check_action(self.action_space, action)[None]
        )
        reward = float(self.reward(tokens, seconds)[0])
        info = {"tokens": int(tokens[0]), "seconds": float(seconds[0]), "cycles": int(cycles[0])}
        return self._walk.observe()[0], reward, bool(ended[0]), False, info


class TraceVecEnv(VecEnv):
    """Many traces side by side, for stable-baselines3, in a few NumPy calls per step.

    A trace that ends is followed by another, drawn uniformly. ``infos`` are those of `TraceEnv`,
    and at the end of an episode those of a Monitor.

    Attributes:
        actions: the actions.
        reward: the reward; all sequences share its rate.
    """

    _SAVED = ("returns", "steps")
    _SAVED_OF_WALK = ("nodes", "acceptance", "drafted")

    def __init__(
        self,
        traces: Iterable[Trace],
        actions: ActionSpace,
        cost: CostTable,
        *,
        n_envs: int = 64,
        cache_steps: int = 10,
        extras: Sequence[str] = (),
        similarity_threshold: float | None = None,
        horizon: int = 1,
        reward: RewardName = "tokens",
        seed: int = 0,
    ) -> None:
        """Set up; see `TraceEnv`.

        Args:
            traces: recorded continuations.
            actions: trees to choose from.
            cost: time of the cycles.
            n_envs: sequences side by side.
            cache_steps: cycles of a window.
            extras: see `TraceEnv`.
            similarity_threshold: see `TraceEnv`.
            horizon: see `TraceEnv`.
            reward: see `WindowReward`.
            seed: of the order of the traces.

        Raises:
            ValueError: see `TraceEnv`; or `n_envs` below 1.
        """
        if n_envs < 1:
            raise ValueError(f"n_envs must be at least 1, got {n_envs}")
        check_keeping(similarity_threshold, horizon)
        self._windows = TraceWindows(
            traces, actions, cost, cache_steps=cache_steps, extras=extras,
            similarity_threshold=similarity_threshold,
        )  # fmt: skip
        self.actions = actions
        self.reward = WindowReward(reward, initial_rate=1.0 / float(cost.verify_seconds(1, 0)))
        self.render_mode = None
        super().__init__(
            n_envs,
            observation_space(self._windows.observation_size),
            action_space(len(actions), horizon),
        )
        self._generator = np.random.default_rng(seed)
        self._walk = TraceWalk(self._windows, np.zeros(n_envs, dtype=np.int64))
        self._chosen = np.zeros((n_envs, horizon), dtype=np.int64)
        self._returns = np.zeros(n_envs)
        self._steps = np.zeros(n_envs, dtype=np.int64)
        self._started = time.monotonic()

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Restart the draws and the rate."""
        if seed is not None:
            self._generator = np.random.default_rng(seed)
            self.reward.reset()
        return [seed] * self.num_envs

    def reset(self) -> np.ndarray:
        """Begin a trace in every environment; return observations (n_envs, size) float32."""
        self._restart(np.arange(self.num_envs))
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return self._walk.observe()

    def step_async(self, actions: np.ndarray) -> None:
        """Take (n_envs,) actions, or (n_envs, horizon)."""
        self._chosen = np.asarray(actions, dtype=np.int64).reshape(self.num_envs, -1)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Return observations (n_envs, size), rewards, ends, and infos of the windows."""
        tokens, seconds, cycles, done = self._walk.advance(self._chosen)
        rewards = self.reward(tokens, seconds).astype(np.float32)
        self._returns += rewards
        self._steps += 1
        infos = [
            {"tokens": count, "seconds": duration, "cycles": passes}
            for count, duration, passes in zip(
                tokens.tolist(), seconds.tolist(), cycles.tolist(), strict=True
            )
        ]
        ended = np.flatnonzero(done)
        if len(ended):
            last = self._walk.observe(ended)
            for index, observation in zip(ended.tolist(), last, strict=True):
                infos[index] |= self._episode_info(index, observation)
            self._restart(ended)
        return self._walk.observe(), rewards, done, infos

    def _episode_info(self, index: int, observation: np.ndarray) -> dict[str, Any]:
        episode = {
            "r": float(self._returns[index]),
            "l": int(self._steps[index]),
            "t": round(time.monotonic() - self._started, 6),
        }
        return {
            "episode": episode,
            "terminal_observation": observation,
            "TimeLimit.truncated": False,
        }

    def _restart(self, indices: np.ndarray) -> None:
        drawn = self._generator.integers(len(self._windows.starts), size=len(indices))
        self._walk.restart(indices, drawn)
        self._returns[indices] = 0.0
        self._steps[indices] = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the sequences, the rate and the draws, as JSON values."""
        arrays = {name: array.tolist() for name, array in self._saved_arrays().items()}
        draws = self._generator.bit_generator.state
        return {**arrays, "reward": list(self.reward.state()), "draws": draws}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, over the same traces.

        Raises:
            ValueError: the state is of another number of sequences.
        """
        if len(state["nodes"]) != self.num_envs:
            raise ValueError(
                f"the state must be of {self.num_envs} sequences, got {len(state['nodes'])}"
            )
        for name, own in self._saved_arrays().items():
            own[:] = state[name]
        self.reward.load_state(state["reward"])
        self._generator.bit_generator.state = state["draws"]

    def _saved_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that a state holds."""
        of_walk = {name: getattr(self._walk, name) for name in self._SAVED_OF_WALK}
        return {**of_walk, **{name: getattr(self, f"_{name}") for name in self._SAVED}}

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute, which all environments share, once for each."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute, which all environments share."""
        setattr(self, attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Refuse the call: there are no environments behind this one.

        Raises:
            AttributeError: always.
        """
        raise AttributeError(
            f"{method_name!r} cannot be called on the environments of a TraceVecEnv: it has none"
        )

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return False for each environment: none is wrapped."""
        return [False for _ in self._get_indices(indices)]
