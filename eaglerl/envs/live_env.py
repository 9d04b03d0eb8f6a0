"""An environment over a live decoder: one step is one cache window of real cycles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from eaglerl.actions import ActionSpace
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.decoder import SpeculativeDecoder
from eaglerl.eagle3.policy import NO_DRAFT, DraftPlan, TreeParams
from eaglerl.eagle3.prompt_inputs import check_token_ids
from eaglerl.eagle3.session import DecodingSession
from eaglerl.eagle3.stopping import StoppingRules
from eaglerl.eagle3.tree.tree_drafter import check_top_k
from eaglerl.envs.action_repeat import ActionRepeat, check_keeping
from eaglerl.envs.observations import ObservationSpec, Observer, TextEncoder, draft_head_of
from eaglerl.envs.rewards import RewardName, WindowReward
from eaglerl.envs.trace_env import action_space, check_action, observation_space
from eaglerl.envs.trace_windows import running_acceptance
from eaglerl.traces.recording import Prompt

#: Cycles without drafting, to measure the initial rate.
_RATE_CYCLES = 8


class SpeculativeDecodingEnv(gym.Env):
    """Decoding of prompts; an action is the tree of one cache window, or of each of several.

    An episode is one prompt's greedy continuation. Spaces, rewards and ``info`` are those of
    `TraceEnv`. `reset` draws a prompt; ``options={"prompt": index}`` names one.

    Attributes:
        actions: the actions.
        observation_spec: what is observed.
        reward: the reward, with its running rate.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        decoder: SpeculativeDecoder,
        prompts: Sequence[Prompt | Sequence[int]],
        actions: ActionSpace,
        *,
        cache_steps: int = 10,
        max_new_tokens: int = 128,
        observation: ObservationSpec | None = None,
        extras: Sequence[str] = (),
        similarity_threshold: float | None = None,
        horizon: int = 1,
        reward: RewardName = "tokens",
        cost: CostTable | None = None,
        text_encoder: TextEncoder | None = None,
    ) -> None:
        """Set up.

        Args:
            decoder: a decoder with a draft head; every episode has its own caches.
            prompts: token ids.
            actions: trees to choose from.
            cache_steps: cycles of a window.
            max_new_tokens: longest continuation.
            observation: what is observed; by default the features g of the head, and `extras`.
            extras: see `TraceEnv`.
            similarity_threshold: see `TraceEnv`.
            horizon: see `TraceEnv`.
            reward: see `WindowReward`.
            cost: cost table used instead of the clock, for reproducible rewards.
            text_encoder: see `Observer`.

        Raises:
            ValueError: a value is out of its range, there is no prompt or one without room, an
                action is wider than the draft's vocabulary, or the decoder lacks the draft head
                or cannot give the observation.
        """
        _check_lengths(cache_steps, max_new_tokens)
        check_keeping(similarity_threshold, horizon)
        head = draft_head_of(decoder)
        for action in actions:
            check_top_k(action, head.config.draft_vocab_size)
        spec = _observation_spec(decoder, observation, extras)
        self._prompts = _checked_prompts(decoder, prompts, max_new_tokens)
        self.actions = actions
        self.observation_spec = spec
        self._decoder = decoder
        self._max_new_tokens = max_new_tokens
        self._cost = cost
        self._observer = Observer(
            spec, head=head, tokenizer=decoder.tokenizer, text_encoder=text_encoder
        )
        self.observation_space = observation_space(spec.size)
        self.action_space = action_space(len(actions), horizon)
        self._kept = ActionRepeat(cache_steps, similarity_threshold)
        self._start_without_episode()
        self.reward = WindowReward(reward, initial_rate=self._initial_rate())

    def _start_without_episode(self) -> None:
        self._device = self._decoder.target.device
        self._widest = max(action.total_tokens for action in self.actions)
        self._observation = np.zeros(self.observation_spec.size, dtype=np.float32)
        self._session: DecodingSession | None = None
        self._acceptance = np.zeros(1)
        self._sequence: list[int] = []
        self._prompt_length = 0
        self._rules: StoppingRules | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a prompt; a seed restarts the draws and the rate.

        If the answer to a drawn prompt is empty, the next prompt is taken; ``info`` says which.

        Raises:
            ValueError: ``options["prompt"]`` is not the index of a prompt, its answer is empty, or
                all answers are.
        """
        super().reset(seed=seed)
        if seed is not None:
            self.reward.reset()
        count = len(self._prompts)
        named = (options or {}).get("prompt")
        if named is not None and not 0 <= named < count:
            raise ValueError(f'options["prompt"] must lie in 0..{count - 1}, got {named}')
        first = int(self.np_random.integers(count)) if named is None else named
        for index in range(first, first + (count if named is None else 1)):
            self._begin(index % count)
            if self._running()[1].finish_reason is None:
                return self._show(), {"prompt": index % count}
        raise ValueError(
            "the target ends "
            + ("every prompt" if named is None else f"prompt {named}")
            + " with its first token: there is no cycle to choose a tree for"
        )

    def step(
        self, action: int | np.ndarray
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Decode one cache window per action.

        Raises:
            ValueError: an action is out of range.
            RuntimeError: the episode is over, or has not begun.
        """
        chosen = check_action(self.action_space, action)
        if self._rules is None or self._rules.finish_reason is not None:
            raise RuntimeError("step() needs an episode: call reset() first")
        tokens, seconds, cycles = 0, 0.0, 0
        tree: TreeParams | None = self._kept.take(
            [self.actions[index] for index in chosen], self._features()
        )
        while tree is not None:
            emitted, duration = self._cycle(DraftPlan(tree))
            tokens += emitted
            seconds += duration
            cycles += 1
            if self._rules.finish_reason is not None:
                break
            tree = self._kept.serve(lambda: self._features(self._observe()))
        reward = float(self.reward(np.array(tokens), np.array(seconds)))
        self._acceptance = running_acceptance(
            self._acceptance, np.array([tokens]), np.array([cycles])
        )
        info = {"tokens": tokens, "seconds": seconds, "cycles": cycles}
        return self._show(), reward, self._rules.finish_reason is not None, False, info

    def close(self) -> None:
        """End the episode and give its caches back to the decoder; `reset` begins another."""
        if self._session is not None:
            self._session.close("the episode is over")
        self._session = self._rules = None

    @property
    def token_ids(self) -> list[int]:
        """The sequence so far, prompt and output."""
        return list(self._sequence)

    def _begin(self, index: int) -> None:
        prompt = self._prompts[index]
        length = len(prompt) + self._max_new_tokens + self._widest
        self.close()
        settings = self._decoder.read_options(max_new_tokens=self._max_new_tokens)
        verifier, self._rules = settings.start(
            prompt,
            self._decoder.target.max_positions - len(prompt),
            tokenizer=self._decoder.tokenizer,
        )
        self._session = self._decoder.new_session(verifier, length)
        self._sequence, self._prompt_length = list(prompt), len(prompt)
        self._acceptance = np.zeros(1)
        self._keep((self._session.prefill(prompt),))

    def _running(self) -> tuple[DecodingSession, StoppingRules]:
        """Return the session and the stopping rules of the episode, which has begun."""
        assert self._session is not None
        assert self._rules is not None
        return self._session, self._rules

    def _keep(self, emitted: Sequence[int]) -> int:
        kept = self._running()[1].accept(self._sequence, self._prompt_length, emitted)
        self._sequence.extend(emitted[:kept])
        return kept

    def _cycle(self, plan: DraftPlan) -> tuple[int, float]:
        """Decode one cycle; return the number of tokens kept, and the seconds."""
        session, rules = self._running()
        left = rules.limit - (len(self._sequence) - self._prompt_length)
        context = len(session.token_ids)
        result = session.step(plan.limited_to(left - 1))
        seconds = result.seconds
        if self._cost is not None:
            seconds = float(self._cost.seconds(result.params, context))
        return self._keep(result.token_ids), seconds

    def _observe(self) -> np.ndarray:
        state = self._running()[0].state
        observation = self._observer.observe_state(state, float(self._acceptance[0]))
        assert observation is not None  # a live state has features and text
        return observation

    def _show(self) -> np.ndarray:
        self._observation = self._observe()
        return self._observation

    def _features(self, observation: np.ndarray | None = None) -> np.ndarray:
        """Return the features in an observation, by default the last one shown."""
        shown = self._observation if observation is None else observation
        return shown[: self.observation_spec.width]

    def _initial_rate(self) -> float:
        """Return the tokens per second without drafting."""
        if self._cost is not None:
            return 1.0 / float(self._cost.verify_seconds(1, 0))
        self._begin(0)
        cycles = min(_RATE_CYCLES, self._max_new_tokens - 1)
        session, _ = self._running()
        results = [session.step(NO_DRAFT) for _ in range(cycles)]
        self.close()
        # The median ignores the first cycles, which warm up.
        return 1.0 / float(np.median([result.seconds for result in results]))


def _check_lengths(cache_steps: int, max_new_tokens: int) -> None:
    # The prefill gives one token: at least one cycle must follow.
    for name, value, least in (
        ("cache_steps", cache_steps, 1),
        ("max_new_tokens", max_new_tokens, 2),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def _observation_spec(
    decoder: SpeculativeDecoder, observation: ObservationSpec | None, extras: Sequence[str]
) -> ObservationSpec:
    if observation is None:
        width = draft_head_of(decoder).config.hidden_size
        return ObservationSpec("features", width, tuple(extras))
    if extras:
        raise ValueError(f"give observation or extras, not both; got extras {list(extras)}")
    return observation


def _checked_prompts(
    decoder: SpeculativeDecoder, prompts: Sequence[Prompt | Sequence[int]], max_new_tokens: int
) -> list[list[int]]:
    rows = [list(prompt.token_ids if isinstance(prompt, Prompt) else prompt) for prompt in prompts]
    room = decoder.target.max_positions - max_new_tokens
    if not rows or not all(0 < len(prompt) <= room for prompt in rows):
        raise ValueError(
            f"prompts must hold at least one prompt, each of 1 to {room} tokens, got lengths "
            f"{sorted({len(prompt) for prompt in rows})}"
        )
    check_token_ids(rows, decoder.target.vocab_size, decoder.target.max_positions)
    return rows
