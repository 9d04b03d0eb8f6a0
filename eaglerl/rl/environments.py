"""Environments over recorded traces: deterministic, and thousands of times faster than decoding.

One step is one cache window: the cycles in which an action is kept. An episode is one prompt's
continuation. The observation is what the draft head's fc makes of the last token's features, and
the extras that were asked for; the action is an index into an `ActionSpace`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnv

from eaglerl.rl.actions import ActionSpace
from eaglerl.rl.cost import CostTable
from eaglerl.rl.rewards import RewardName, WindowReward
from eaglerl.rl.trace_world import TraceWorld, running_acceptance
from eaglerl.rl.traces import Trace


def observation_space(size: int) -> gym.spaces.Box:
    """The space of observations, live and on traces."""
    return gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)


class TraceEnv(gym.Env):
    """One sequence at a time, for any library that knows gymnasium.

    `reset` draws a trace; ``options={"trace": index}`` names one. ``info`` holds the window's
    ``tokens``, ``seconds`` and ``cycles``.

    Attributes:
        actions: the actions.
        reward: the reward, with its lambda.
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
        reward: RewardName = "tokens",
    ) -> None:
        """Set up.

        Args:
            traces: recorded continuations.
            actions: trees to choose from.
            cost: time of the cycles.
            cache_steps: cycles of a window.
            extras: of "acceptance" (running acceptance length), "position" (tokens of context, in
                thousands) and "confidence" (log-probabilities of the first draft pass).
            reward: see `WindowReward`.

        Raises:
            ValueError: see `TraceWorld` and `WindowReward`.
        """
        self._world = TraceWorld(traces, actions, cost, cache_steps=cache_steps, extras=extras)
        self.actions = actions
        self.reward = WindowReward(reward, initial_rate=1.0 / float(cost.verify_seconds(1, 0)))
        self.observation_space = observation_space(self._world.observation_size)
        self.action_space = gym.spaces.Discrete(len(actions))
        self._node = np.array([self._world.starts[0]])
        self._acceptance = np.zeros(1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a trace. A seed begins everything anew, lambda included.

        Raises:
            ValueError: ``options["trace"]`` is no trace.
        """
        super().reset(seed=seed)
        if seed is not None:
            self.reward.reset()
        count = len(self._world.starts)
        index = (options or {}).get("trace")
        if index is None:
            index = int(self.np_random.integers(count))
        if not 0 <= index < count:
            raise ValueError(f'options["trace"] must lie in 0..{count - 1}, got {index}')
        self._node = self._world.starts[index : index + 1].copy()
        self._acceptance = np.zeros(1)
        return self._world.observe(self._node, self._acceptance)[0], {"trace": index}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One cache window with one action.

        Raises:
            ValueError: an index that is no action.
        """
        if not self.action_space.contains(np.int64(action)):
            raise ValueError(f"action must lie in 0..{len(self.actions) - 1}, got {action}")
        world, node = self._world, self._node
        following = world.next_node[node, action].astype(np.int64)
        tokens, seconds = following - node, world.seconds[node, action]
        cycles = world.cycles[node, action]
        reward = float(self.reward(tokens, seconds)[0])
        self._acceptance = running_acceptance(self._acceptance, tokens, cycles)
        self._node = following
        info = {"tokens": int(tokens[0]), "seconds": float(seconds[0]), "cycles": int(cycles[0])}
        done = bool(following[0] == world.ends[node[0]])
        return world.observe(following, self._acceptance)[0], reward, done, False, info


class TraceVecEnv(VecEnv):
    """Many sequences side by side, as stable-baselines3 wants them, in a few NumPy calls a step.

    A sequence that ends is followed by another, drawn evenly. ``infos`` are as in `TraceEnv`, and
    as a Monitor gives them at the end of an episode.

    Attributes:
        actions: the actions.
        reward: the reward; all sequences share its lambda.
    """

    _SAVED = ("nodes", "acceptance", "returns", "steps")

    def __init__(
        self,
        traces: Iterable[Trace],
        actions: ActionSpace,
        cost: CostTable,
        *,
        n_envs: int = 64,
        cache_steps: int = 10,
        extras: Sequence[str] = (),
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
            reward: see `WindowReward`.
            seed: of the order of the traces.

        Raises:
            ValueError: see `TraceEnv`; or `n_envs` below 1.
        """
        if n_envs < 1:
            raise ValueError(f"n_envs must be at least 1, got {n_envs}")
        self._world = TraceWorld(traces, actions, cost, cache_steps=cache_steps, extras=extras)
        self.actions = actions
        self.reward = WindowReward(reward, initial_rate=1.0 / float(cost.verify_seconds(1, 0)))
        self.render_mode = None
        super().__init__(
            n_envs,
            observation_space(self._world.observation_size),
            gym.spaces.Discrete(len(actions)),
        )
        self._generator = np.random.default_rng(seed)
        self._nodes = np.zeros(n_envs, dtype=np.int64)
        self._chosen = np.zeros(n_envs, dtype=np.int64)
        self._acceptance = np.zeros(n_envs)
        self._returns = np.zeros(n_envs)
        self._steps = np.zeros(n_envs, dtype=np.int64)
        self._started = time.monotonic()

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Begin the draws and lambda anew."""
        if seed is not None:
            self._generator = np.random.default_rng(seed)
            self.reward.reset()
        return [seed] * self.num_envs

    def reset(self) -> np.ndarray:
        """Begin a trace in every environment; (n_envs, size) float32 observations."""
        self._restart(np.arange(self.num_envs))
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return self._world.observe(self._nodes, self._acceptance)

    def step_async(self, actions: np.ndarray) -> None:
        """Take (n_envs,) actions."""
        self._chosen = np.asarray(actions, dtype=np.int64)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Observations (n_envs, size), rewards, ends, and infos of the windows."""
        world, nodes, chosen = self._world, self._nodes, self._chosen
        following = world.next_node[nodes, chosen].astype(np.int64)
        tokens, seconds = following - nodes, world.seconds[nodes, chosen]
        cycles = world.cycles[nodes, chosen]
        rewards = self.reward(tokens, seconds).astype(np.float32)
        self._acceptance = running_acceptance(self._acceptance, tokens, cycles)
        self._nodes = following
        self._returns += rewards
        self._steps += 1
        infos = [
            {"tokens": count, "seconds": duration, "cycles": passes}
            for count, duration, passes in zip(
                tokens.tolist(), seconds.tolist(), cycles.tolist(), strict=True
            )
        ]
        done = following == world.ends[nodes]
        ended = np.flatnonzero(done)
        if len(ended):
            last = world.observe(following[ended], self._acceptance[ended])
            for index, observation in zip(ended.tolist(), last, strict=True):
                infos[index] |= self._episode_info(index, observation)
            self._restart(ended)
        return world.observe(self._nodes, self._acceptance), rewards, done, infos

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
        drawn = self._generator.integers(len(self._world.starts), size=len(indices))
        self._nodes[indices] = self._world.starts[drawn]
        self._acceptance[indices] = 0.0
        self._returns[indices] = 0.0
        self._steps[indices] = 0

    def state_dict(self) -> dict[str, Any]:
        """Where every sequence stands, lambda and the draws: JSON values."""
        arrays = {name: getattr(self, f"_{name}").tolist() for name in self._SAVED}
        draws = self._generator.bit_generator.state
        return {**arrays, "reward": list(self.reward.state()), "draws": draws}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was asked, over the same traces.

        Raises:
            ValueError: it is of another number of sequences.
        """
        if len(state["nodes"]) != self.num_envs:
            raise ValueError(
                f"the state must be of {self.num_envs} sequences, got {len(state['nodes'])}"
            )
        for name in self._SAVED:
            own = getattr(self, f"_{name}")
            own[:] = state[name]
        self.reward.load_state(state["reward"])
        self._generator.bit_generator.state = state["draws"]

    def close(self) -> None:
        """Nothing to release."""

    def get_attr(self, attr_name: str, indices=None) -> list[Any]:
        """The attribute, which all environments share, once for each."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices=None) -> None:
        """Set an attribute, which all environments share."""
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args, indices=None, **method_kwargs
    ) -> list[Any]:
        """Not supported: there are no environments behind this one.

        Raises:
            AttributeError: always.
        """
        raise AttributeError(
            f"{method_name!r} cannot be called on the environments of a TraceVecEnv: it has none"
        )

    def env_is_wrapped(self, wrapper_class: type, indices=None) -> list[bool]:
        """False: nothing is wrapped."""
        return [False for _ in self._get_indices(indices)]
