"""Runners: modes at work, which decode conversations and time every cycle."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from eaglerl.eagle3.decoder import SpeculativeDecoder
from eaglerl.eagle3.fused_policy import fused_part
from eaglerl.eagle3.policy import StagedPolicy, StepResult, TreeParams, TreePolicy
from eaglerl.eagle3.prompt_inputs import all_read
from eaglerl.evaluation.modes.policy_modes import cache_counts
from eaglerl.evaluation.questions.question_files import Question, chat_ids
from eaglerl.evaluation.results.records import Cycles, Turn


@dataclass(frozen=True)
class Decoding:
    """Settings of decoding, the same for all modes.

    Attributes:
        max_new_tokens: longest answer.
        temperature: 0 is greedy.
        top_p: nucleus mass.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0


class Runner(Protocol):
    """One mode, ready to decode."""

    def decode(
        self, prompt_ids: Sequence[int], question: Question, decoding: Decoding, seed: int
    ) -> Turn:
        """Answer one prompt."""

    def cache_counts(self) -> tuple[int, int] | None:
        """Return the cached and the fresh decisions so far, or None without a cache."""


def answer(
    runner: Runner, question: Question, tokenizer: Any, decoding: Decoding, seed: int
) -> list[Turn]:
    """Answer a conversation; every turn sees the mode's own answers to the earlier turns.

    Args:
        runner: runner of the mode.
        question: the conversation.
        tokenizer: tokenizer of the target.
        decoding: settings of decoding.
        seed: seed of the first turn; each later turn's is larger by one.
    """
    turns: list[Turn] = []
    answers: list[str] = []
    for index in range(len(question.turns)):
        prompt = chat_ids(tokenizer, question.turns[: index + 1], answers)
        turn = runner.decode(prompt, question, decoding, seed + index)
        turns.append(turn)
        answers.append(tokenizer.decode(turn.output_ids, skip_special_tokens=True))
    return turns


class DecoderRunner:
    """Runner of a constant tree or a policy in `SpeculativeDecoder`."""

    def __init__(
        self,
        decoder: SpeculativeDecoder,
        policy_of: TreePolicy | TreeParams | Mapping[str, TreeParams],
        counter: Any = None,
    ) -> None:
        """Set up.

        Args:
            decoder: the decoder.
            policy_of: the policy or the tree, or the tree of each split.
            counter: object that counts cached decisions, see `load_live_policy`.
        """
        self._decoder = decoder
        self._counter = counter
        self._policy_of = policy_of

    def decode(
        self, prompt_ids: Sequence[int], question: Question, decoding: Decoding, seed: int
    ) -> Turn:
        """See `Runner`."""
        policy = self._policy_of
        if isinstance(policy, Mapping):
            policy = policy[question.split]
        output = self._decoder.generate(
            all_read(prompt_ids),
            policy,
            max_new_tokens=decoding.max_new_tokens,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            # Overrides the target's generation config, so that all runners sample alike.
            top_k=0,
            seed=seed,
        )
        statistics = output.statistics
        return Turn(
            prompt_tokens=len(prompt_ids),
            output_ids=tuple(output.sequences[0, len(prompt_ids) :].tolist()),
            finish_reason=str(output.finish_reasons[0]),
            prefill_seconds=statistics.prefill_seconds,
            decode_seconds=statistics.decode_seconds,
            cycles=cycles_of(statistics.cycles, policy),
        )

    def cache_counts(self) -> tuple[int, int] | None:
        """See `Runner`."""
        return cache_counts(self._counter)


class TransformersRunner:
    """Runner of transformers' own ``generate`` with its KV cache."""

    def __init__(self, model: Any) -> None:
        """Set up.

        Args:
            model: the target, as transformers runs it.
        """
        self._model = model

    def decode(
        self, prompt_ids: Sequence[int], question: Question, decoding: Decoding, seed: int
    ) -> Turn:
        """See `Runner`."""
        sampling: dict[str, Any] = {"do_sample": False}
        if decoding.temperature:
            torch.manual_seed(seed)
            sampling = {
                "do_sample": True,
                "temperature": decoding.temperature,
                "top_p": decoding.top_p,
                "top_k": 0,
            }
        prompt = torch.tensor([list(prompt_ids)], device=self._model.device)
        clock = _TokenClock()
        started = time.perf_counter()
        output = self._model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=decoding.max_new_tokens,
            use_cache=True,
            streamer=clock,
            **sampling,
        )
        ended = time.perf_counter()
        new = tuple(output[0, prompt.shape[1] :].tolist())
        first, gaps = clock.times[0], clock.gaps()
        limited = len(new) == decoding.max_new_tokens
        return Turn(
            prompt_tokens=len(prompt_ids),
            output_ids=new,
            finish_reason="length" if limited else "stop",
            prefill_seconds=first - started,
            decode_seconds=ended - first,
            cycles=_plain_cycles(gaps),
        )

    def cache_counts(self) -> None:
        """Return None: there is no policy."""


class _TokenClock:
    """A streamer that records when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen:
            self.times.append(time.perf_counter())
        self._prompt_seen = True

    def end(self) -> None:
        pass

    def gaps(self) -> list[float]:
        """Return the seconds between tokens."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


def cycles_of(results: Sequence[StepResult], policy: TreeParams | TreePolicy | None) -> Cycles:
    """Return cycles as a record holds them.

    Args:
        results: the cycles.
        policy: the policy of the one sequence; None for one of several sequences.
    """

    def column(value: Callable[[StepResult], Any]) -> tuple[Any, ...]:
        return tuple(map(value, results))

    # A staged policy decides within the drafting time, a fused one within the verification time:
    # its seconds are subtracted. What a policy does before and after a cycle takes microseconds and
    # is not subtracted.
    in_draft = isinstance(policy, StagedPolicy)
    in_verify = fused_part(policy) is not None
    return Cycles(
        tokens=column(lambda result: result.accepted + 1),
        total_tokens=column(lambda result: result.params.total_tokens),
        depth=column(lambda result: result.params.depth),
        top_k=column(lambda result: result.params.top_k),
        rows=column(lambda result: result.rows),
        lookup_tokens=column(lambda result: len(result.lookup.token_ids)),
        lookup_accepted=column(lambda result: result.lookup_accepted),
        draft_seconds=column(lambda r: max(0.0, r.draft_seconds - in_draft * r.policy_seconds)),
        verify_seconds=column(lambda r: max(0.0, r.verify_seconds - in_verify * r.policy_seconds)),
        policy_seconds=column(lambda result: result.policy_seconds),
    )


def _plain_cycles(gaps: Sequence[float]) -> Cycles:
    ones, zeros = (1,) * len(gaps), (0,) * len(gaps)
    nothing = (0.0,) * len(gaps)
    return Cycles(ones, ones, zeros, ones, ones, zeros, zeros, nothing, tuple(gaps), nothing)
