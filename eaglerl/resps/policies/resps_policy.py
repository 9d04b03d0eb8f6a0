"""What the policies of Re-SpS share: decisions and their cache, transitions, checkpoints."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch

from eaglerl.eagle3.fused_policy import FusedPolicy
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.policy import CycleState, TreeParams
from eaglerl.eagle3.session import StepResult
from eaglerl.envs.action_repeat import ActionRepeat, decide
from eaglerl.envs.observations import Observer, TextEncoder
from eaglerl.envs.trace_windows import running_acceptance
from eaglerl.fingerprints import head_id
from eaglerl.ops import PolicyWeights
from eaglerl.resps.policies.policy_outputs import PolicyOutputs
from eaglerl.resps.policies.policy_saving import Persistence
from eaglerl.resps.policies.policy_settings import PolicySettings, check_model_options
from eaglerl.resps.policies.policy_statistics import PolicyStatistics
from eaglerl.resps.policies.reward_window import RewardWindow

if TYPE_CHECKING:
    from eaglerl.resps.policies.sb3_learner import Learner


class ReSpSPolicy(Persistence):
    """A `TreePolicy` of Re-SpS; see `OptimizedSB3DiscretePPOOnlineTreePolicy`.

    Attributes:
        algorithm: "ppo" or "dqn".
        settings: its settings.
        statistics: counts of what it has done.
        training_mode: whether `choose` explores and `observe` learns.
    """

    algorithm: ClassVar[str]
    #: An observation and its actions, until their window is over.
    _pending: tuple[np.ndarray, tuple[int, ...]] | None
    #: The reward of the cycle before, as in Re-SpS.
    _late: float | None

    def __init__(
        self,
        settings: PolicySettings,
        model_options: Mapping[str, Any],
        *,
        head: Eagle3DraftHead | None = None,
        tokenizer: Any = None,
        text_encoder: TextEncoder | None = None,
        **outputs: Any,
    ) -> None:
        """Set up; what needs stable-baselines3 is made when it is first needed.

        Args:
            settings: see `PolicySettings`.
            model_options: options of the algorithm.
            head: the draft head, which reduces the target's features.
            tokenizer: for a policy that reads text in the decoding loop.
            text_encoder: see `Observer`.
            outputs: checkpoints and logs, see `PolicyOutputs`.

        Raises:
            ValueError: a value is out of its range, or the head does not fit.
            ImportError: an output that was asked for is not installed.
        """
        check_model_options(model_options)
        self.settings = settings
        self.training_mode = False
        self._model_options = dict(model_options)
        self._head_id = None if head is None else head_id(head)
        self._observer = Observer(
            settings.spec,
            head=head,
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            text_model=settings.text_model,
            mean_of_blocks=settings.reference,
            reads_features=settings.use_eagle3_features,
            seed=settings.seed,
        )
        self._learner: Learner | None = None
        self._weights: PolicyWeights | None = None
        self._window = RewardWindow(settings.reward, reference=settings.reference)
        self._outputs = PolicyOutputs(self.configuration, **outputs)
        self._checkpoints = self._outputs.checkpoints
        self._lock: ExitStack | None = None
        self.statistics = PolicyStatistics()
        self._training: dict[str, Any] = {}
        # Shared by the policy and its forks, so that none repeats another's draws.
        self._draws = count(1)
        self._kept = ActionRepeat(settings.interval, settings.similarity_threshold)
        self._forget_sequence()

    @property
    def configuration(self) -> dict[str, Any]:
        """JSON values that a resumed run must share."""
        return {
            "algorithm": self.algorithm,
            **self.settings.to_dict(),
            **{f"model.{name}": value for name, value in self._model_options.items()},
        }

    @property
    def formulation(self) -> str:
        """What is solved: a "contextual bandit" if nothing after a window counts."""
        bandit = self.settings.reference or not self._model_options["gamma"]
        return "contextual bandit" if bandit else "Markov decision process"

    @property
    def default_params(self) -> TreeParams:
        """The tree that is used without a state."""
        return self.settings.actions[self.settings.fallback_action]

    @property
    def weights(self) -> PolicyWeights:
        """Weights for inference, as of the last update."""
        if self._weights is None:
            self._weights = self._export(self.learner.model)
        return self._weights

    @property
    def learner(self) -> Learner:
        """The algorithm; needs stable-baselines3.

        Raises:
            ImportError: it is not installed.
        """
        if self._learner is None:
            try:
                self._learner = self._make_learner()
            except ModuleNotFoundError as error:
                if error.name not in ("gymnasium", "stable_baselines3"):
                    raise
                raise ImportError(
                    f"training needs {error.name}: install the extra with pip install 'eaglerl[rl]'"
                ) from error
            if self._weights is not None:
                self._learner.load_actor(self._weights)
            self._learner.model.set_logger(self._outputs.log.logger)
        return self._learner

    @abstractmethod
    def _make_learner(self) -> Learner:
        """Return a learner whose model is new."""

    @abstractmethod
    def new_model(self, env: Any, **changes: Any) -> Any:
        """Return a new model of stable-baselines3, set up like the policy's own.

        Args:
            env: environments to learn from, with this policy's spaces.
            changes: arguments that differ from the policy's own.
        """

    def predict_parameters(
        self,
        context: str | None = None,
        hidden_states: torch.Tensor | np.ndarray | None = None,
        training_mode: bool = False,
    ) -> tuple[int, int, int]:
        """Return the tree of the next cycle.

        Args:
            context: the text so far, for policies that read it, or where features are missing.
            hidden_states: (..., k) or (..., 3k) features; those of the last token are taken.
            training_mode: explore, and remember the decision for `update_policy`.

        Returns:
            total_tokens, depth and top_k; the default tree if nothing was given to decide by.

        Raises:
            ValueError: features of another width, or extras that only `choose` knows.
        """
        extras = self.settings.spec.extras
        if extras:
            raise ValueError(f"a policy with the extras {list(extras)} must be asked by choose()")
        tree = self._decide(lambda: self._observer.observe(hidden_states, context), training_mode)
        return tree.total_tokens, tree.depth, tree.top_k

    def update_policy(
        self,
        reward: float | None = None,
        generation_time: float | None = None,
        new_tokens: int | None = None,
        training_mode: bool = True,
    ) -> None:
        """Report the result of the cycle after `predict_parameters`.

        Args:
            reward: of the cycle; not needed with the other two, whose sums are preferred.
            generation_time: seconds, drafting included.
            new_tokens: what it emitted.
            training_mode: False does nothing.

        Raises:
            ValueError: neither a reward nor both of the others.
        """
        if not training_mode:
            return
        self._window.add(reward, generation_time, new_tokens)
        if self.settings.reference and self._window.cycles >= self.settings.interval:
            self._close_window(None, done=True)

    def fork(self) -> Self:
        """Return the same policy for another concurrent sequence; the two share statistics.

        Raises:
            ValueError: the policy is in training mode, which learns from one sequence at a time.
        """
        if self.training_mode:
            raise ValueError(
                f"a {type(self).__name__} in training mode learns from one generation at a time, "
                "and another one has not ended yet"
            )
        self.weights  # noqa: B018 (made now, so that both share them)
        other = copy.copy(self)
        settings = self.settings
        other._kept = ActionRepeat(settings.interval, settings.similarity_threshold)
        other._window = RewardWindow(settings.reward, reference=settings.reference)
        other._forget_sequence()
        return other

    def reset(self) -> None:
        """Begin a sequence; see `TreePolicy`."""
        self.end_sequence()
        self.statistics.counts["sequences"] += 1

    def end_sequence(self) -> None:
        """Learn from the last window, and forget the sequence with the cached decision.

        `reset` does this too, when the next sequence begins.
        """
        self._close_window(None, done=True)
        self._forget_sequence()

    def choose(self, state: CycleState) -> TreeParams:
        """Return the tree of the next cycle; see `TreePolicy`.

        Raises:
            ValueError: the state lacks what the policy reads.
        """
        if self.settings.reference and state.last_result is None:
            # The first tree is drafted before the policy is asked.
            return self.default_params
        return self._decide(
            lambda: self._observer.observe_state(state, self._running_acceptance()),
            self.training_mode,
        )

    def observe(self, result: StepResult) -> None:
        """Learn from a cycle, in training mode; see `TreePolicy`."""
        tokens = len(result.token_ids)
        if not self.settings.reference:
            self._window.add(seconds=result.seconds, tokens=tokens)
            return
        # As in Re-SpS: without the time of drafting, and credited to the action of the next cycle.
        late, self._late = self._late, (tokens / result.verify_seconds)
        self._window.total_tokens += tokens
        self._window.total_seconds += result.seconds
        if late is not None and self.training_mode:
            self.update_policy(late)

    def fused(self) -> FusedPolicy:
        """Return a policy that makes the same decisions within the decoding loop's own calls.

        Raises:
            ValueError: the policy reads something that these calls do not.
        """
        spec = self.settings.spec
        if self.settings.reads_text or spec.extras:
            source = "text" if self.settings.reads_text else spec.source
            raise ValueError(
                f"a policy of {source} with the extras {list(spec.extras)} cannot decide "
                "within the decoding loop's calls; use it as it is"
            )
        return FusedPolicy(
            self.weights,
            action_cache_steps=self.settings.interval,
            cache_mode=self.settings.cache_mode,
            threshold=self.settings.similarity_threshold or 0.0,
            temperature=self._temperature(),
            seed=self.settings.seed,
        )

    def set_action_cache(self, *, enabled: bool) -> None:
        """Turn the action cache on or off; the current decision is discarded."""
        self.settings = replace(self.settings, action_cache_enabled=enabled)
        self._kept = ActionRepeat(self.settings.interval, self.settings.similarity_threshold)

    def close(self) -> None:
        """End the sequence, close the logs, and release the checkpoints."""
        self.end_sequence()
        self._outputs.log.close()
        self._release_checkpoints()

    def _decide(self, observe: Callable[[], np.ndarray | None], training: bool) -> TreeParams:
        counts, width = self.statistics.counts, self.settings.spec.width
        observe = cache(observe)

        def features() -> np.ndarray | None:
            observation = observe()
            return None if observation is None else observation[:width]

        tree = self._kept.serve(features)
        if tree is not None:
            counts["hits"] += 1
            return tree
        observation = observe()
        if observation is None:
            counts["defaults"] += 1
            return self.default_params
        counts["misses"] += 1
        self.statistics.sources[self._observer.last_source] += 1
        self._close_window(observation, done=False)
        if training:
            actions = self.learner.act(observation)
            self._pending = (observation, actions)
        else:
            actions = self._infer(observation)
        self.statistics.actions.update(actions)
        return self._kept.take([self.settings.actions[i] for i in actions], observation[:width])

    def _infer(self, observation: np.ndarray) -> tuple[int, ...]:
        """Return the actions of the next windows at an observation, without exploring."""
        chosen = decide(
            self.weights,
            torch.from_numpy(observation)[None],
            temperature=self._temperature(),
            seed=self.settings.seed,
            offset=next(self._draws),
        )
        return tuple(chosen[0].tolist())

    def _temperature(self) -> float:
        settings = self.settings
        return settings.inference_temperature if settings.max_entropy_inference else 0.0

    def _running_acceptance(self) -> float:
        """Return it as the environments do: up to the window that ends now."""
        window = self._window
        if window.cycles:
            tokens, cycles = np.array([window.tokens]), np.array([window.cycles])
            return float(running_acceptance(self._acceptance, tokens, cycles)[0])
        return float(self._acceptance[0])

    def _close_window(self, following: np.ndarray | None, *, done: bool) -> None:
        """Learn from the current decision: its window is over."""
        window = self._window
        if not window.cycles:
            self._pending = None
            return
        self._acceptance = np.array([self._running_acceptance()])
        seconds, spread = window.seconds, window.spread
        reward = window.close()
        if self._pending is None or reward is None:
            return
        (observation, actions), self._pending = self._pending, None
        following = observation if following is None else following
        if self.learner.add(
            observation, actions, reward, following, done or self.settings.reference
        ):
            self._weights = None
            self.statistics.counts["updates"] += 1
        self.statistics.counts["windows"] += 1
        self.statistics.rewards.append(reward)
        self._log_window(reward, seconds, spread, actions[0])
        if self._outputs.checkpoint_is_due(self.statistics.counts["windows"]):
            self.save_checkpoint()

    def _log_window(self, reward: float, seconds: float, spread: float, action: int) -> None:
        values = {
            "policy/reward": reward,
            "policy/reward_spread_in_window": spread,
            "policy/window_seconds": seconds,
            "policy/tokens_per_second": self._window.tokens_per_second,
            "policy/feature_source": self._observer.last_source,
            "policy/action": action,
            "train/learning_rate": self.learner.model.policy.optimizer.param_groups[0]["lr"],
        }
        self._outputs.log_window(self.statistics, values)

    def _forget_sequence(self) -> None:
        self._kept.forget()
        self._pending = None
        self._acceptance = np.zeros(1)
        self._late = None
        self._window.clear()
