"""Which drafted tokens the target keeps: greedy, or sampled without changing its distribution."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Protocol, cast, runtime_checkable

import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from eaglerl.eagle3.stopping import StoppingRules
from eaglerl.eagle3.tree.device_tree import TreeRows
from eaglerl.ops import DraftTree, accept_path

#: Below it, logits over the temperature come near the largest float32.
_COLD = 1e-30


class Verifier(Protocol):
    """Turns the target's logits of a tree into the path that is kept."""

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """A sequence begins; what `next_token` and `accept` give from now on belongs to it."""

    def next_token(self, logits: torch.Tensor) -> int:
        """The token after a single row of logits (V,)."""

    def accept(self, logits: torch.Tensor, tree: DraftTree | TreeRows) -> tuple[list[int], int]:
        """Rows of the accepted path, the root first, and the bonus token after them."""


@runtime_checkable
class RowVerifier(Verifier, Protocol):
    """A verifier for which a row's logits are enough, so that it can do without the host."""

    def choices(self, logits: torch.Tensor) -> torch.Tensor:
        """(T,) int64: what the target puts after each of (T, V) rows, without leaving the device.

        The path from the root that follows these choices, and its last choice, are those of
        `accept`, or are distributed as they are.
        """


class GreedyVerifier:
    """Keeps what the target's argmax would have written."""

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """The argmax of a row does not depend on the text."""

    def next_token(self, logits: torch.Tensor) -> int:
        """The argmax of (V,) logits."""
        return int(logits.argmax())

    def accept(self, logits: torch.Tensor, tree: DraftTree | TreeRows) -> tuple[list[int], int]:
        """Follow the argmax from the root for as long as the tree has it.

        Siblings carry distinct tokens, so at most one child matches and the path is unique.

        Args:
            logits: (T, V).
            tree: the tree of T rows.
        """
        choices = self.choices(logits).cpu()
        rows = accept_path(tree.parents.int(), tree.token_ids, choices).tolist()
        return rows, int(choices[rows[-1]])

    def choices(self, logits: torch.Tensor) -> torch.Tensor:
        """The argmax of every row."""
        return logits.argmax(-1)


class ColdTemperature:
    """Divides logits by a temperature so small that the quotients would overflow.

    The best logit is subtracted first, which changes no probability: then the others go to minus
    infinity, and the draw to the argmax, as is the limit.
    """

    def __init__(self, temperature: float) -> None:
        """Take a temperature above 0."""
        # What is smaller than float32's smallest normal number would divide by zero.
        self._temperature = max(temperature, torch.finfo(torch.float32).tiny)

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
        """(B, V) scores over the temperature."""
        return (scores - scores.max(dim=-1, keepdim=True).values) / self._temperature


class _Walker:
    """Walks down the tree, one choice per visited row; rows that are not reached cost nothing.

    Where the walk meets the end of the sequence it stops, so that nothing is drawn, and no
    processor is called, for a token that does not belong to the text.
    """

    def __init__(self, rules: StoppingRules | None) -> None:
        self._rules = rules
        self._text: list[int] = []
        self._prompt_length = 0

    @property
    def reads_text(self) -> bool:
        """Whether it depends on the text, so that it serves one sequence at a time."""
        return self._rules is not None

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """A sequence begins; its tokens are kept track of."""
        self._text = list(prompt_ids)
        self._prompt_length = len(prompt_ids)

    def next_token(self, logits: torch.Tensor) -> int:
        """The token after a row of (V,) logits; it is part of the text from now on."""
        token = self._choose(logits)
        self._text.append(token)
        return token

    def accept(self, logits: torch.Tensor, tree: DraftTree | TreeRows) -> tuple[list[int], int]:
        """Choose a token after the root, go to the child that has it, and so on.

        Args:
            logits: (T, V).
            tree: the tree of T rows.
        """
        parents, tokens = tree.parents.tolist(), tree.token_ids.tolist()
        children = {(parents[row], tokens[row]): row for row in range(1, len(tokens))}
        rows = [0]
        while True:
            token = self.next_token(logits[rows[-1]])
            child = children.get((rows[-1], token))
            if child is None or self._ended():
                return rows, token
            rows.append(child)

    def _ended(self) -> bool:
        return self._rules is not None and self._rules.ends(self._text, self._prompt_length)

    def _choose(self, logits: torch.Tensor) -> int:
        raise NotImplementedError


class SamplingVerifier(_Walker):
    """Lossless sampling: the output has the distribution of sampling from the target alone.

    EAGLE's proposals are deterministic, so its rejection sampling (Leviathan et al. 2023, theorem
    3.5; SpecInfer, section 4.3) has the law of a simpler procedure: draw one token from the
    target's distribution at the current node; if a child carries it, go there, else stop: the draw
    is the bonus. The draw does not depend on the tree, therefore neither does the distribution of
    the text.
    """

    def __init__(
        self,
        temperature: float,
        top_p: float,
        top_k: int,
        generator: torch.Generator | None = None,
        *,
        warpers: LogitsProcessorList | None = None,
        rules: StoppingRules | None = None,
    ) -> None:
        """Set up transformers' own warpers, in the order in which its `generate` applies them.

        Args:
            temperature: above 0.
            top_p: nucleus mass; 1 is off.
            top_k: most likely tokens to keep; 0 is off.
            generator: of the draws; torch's global one by default.
            warpers: take the place of these three: processors for which a row's logits are enough.
            rules: where a walk down the tree ends at the latest.

        Raises:
            ValueError: temperature <= 0, top_p outside (0, 1], top_k < 0.
        """
        super().__init__(rules)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive to sample, got {temperature}")
        check_sampling(temperature, top_p, top_k)
        if warpers is None:
            warpers = LogitsProcessorList()
            if temperature != 1.0:
                warpers.append(temperature_warper(temperature))
            if top_k:
                warpers.append(TopKLogitsWarper(int(top_k)))
            if top_p < 1.0:
                warpers.append(TopPLogitsWarper(float(top_p)))
        self._warpers = warpers
        self._generator = generator

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Warped distribution (V,) of one row of logits (V,), in float32."""
        return self._warped(logits[None])[0]

    def choices(self, logits: torch.Tensor) -> torch.Tensor:
        """One draw for every row: those of rows off the path are simply not used."""
        return torch.multinomial(self._warped(logits), 1, generator=self._generator)[:, 0]

    def _warped(self, logits: torch.Tensor) -> torch.Tensor:
        scores = logits.float()
        # Not by the list's own call, which wants ids: warpers read the scores alone.
        for warper in self._warpers:
            scores = warper(None, scores)
        return torch.softmax(scores, dim=-1)

    def _choose(self, logits: torch.Tensor) -> int:
        """A draw from the warped distribution."""
        return int(torch.multinomial(self.probabilities(logits), 1, generator=self._generator))


class ProcessingVerifier(_Walker):
    """Applies logits processors that read the text: to every row with the path that leads to it.

    They are called as transformers' `generate` calls them: once for every token of the text, in
    order, with (1, L) ids and (1, V) float32 logits of their own.
    """

    def __init__(
        self,
        processors: LogitsProcessorList,
        *,
        do_sample: bool,
        generator: torch.Generator | None = None,
        rules: StoppingRules | None = None,
        padding: Sequence[int] = (),
    ) -> None:
        """Set up.

        Args:
            processors: of one sequence.
            do_sample: draw from the processed distribution, or take its argmax.
            generator: of the draws; torch's global one by default.
            rules: where a walk down the tree ends at the latest.
            padding: tokens that processors are shown before the prompt.
        """
        super().__init__(rules)
        self._processors = processors
        self._do_sample = do_sample
        self._generator = generator
        self._padding = list(padding)

    @property
    def reads_text(self) -> bool:
        """Its processors do."""
        return True

    def _choose(self, logits: torch.Tensor) -> int:
        scores = process_row(self._processors, [*self._padding, *self._text], logits)
        if not self._do_sample:
            return int(scores.argmax(-1))
        probabilities = torch.softmax(scores, dim=-1)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def process_row(
    processors: LogitsProcessorList, token_ids: Sequence[int], logits: torch.Tensor
) -> torch.Tensor:
    """What logits processors make of one row.

    Args:
        processors: of one sequence.
        token_ids: L tokens of the sequence.
        logits: (V,) after them; left as they are.

    Returns:
        (V,) float32 scores.
    """
    ids = torch.tensor([list(token_ids)]).to(logits.device)
    # A copy, for a processor may write into it.
    scores = logits[None].to(torch.float32, copy=True)
    # transformers annotates ids with the class of its legacy constructor.
    return processors(cast("torch.LongTensor", ids), scores)[0]


def temperature_warper(temperature: float) -> TemperatureLogitsWarper | ColdTemperature:
    """What divides logits by a temperature above 0."""
    if temperature < _COLD:
        return ColdTemperature(temperature)
    return TemperatureLogitsWarper(float(temperature))


def check_sampling(temperature: float, top_p: float, top_k: int) -> None:
    """Make sure that the three can be sampled with.

    Raises:
        ValueError: temperature < 0, top_p outside (0, 1], top_k < 0.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 (greedy) or positive, got {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    if top_k < 0:
        raise ValueError(f"top_k must be 0 (off) or positive, got {top_k}")


def make_verifier(
    temperature: float, top_p: float, top_k: int, seed: int | None, device: torch.device | str
) -> Verifier:
    """A greedy verifier for temperature 0, a sampling one above.

    Args:
        temperature: 0 for greedy.
        top_p: nucleus mass in (0, 1]; 1 is off.
        top_k: most likely tokens to keep; 0 is off.
        seed: of the draws; None takes torch's global generator, as transformers does.
        device: of the logits.

    Raises:
        ValueError: a value out of its range.
    """
    check_sampling(temperature, top_p, top_k)
    if temperature == 0:
        return GreedyVerifier()
    return SamplingVerifier(temperature, top_p, top_k, seeded_generator(seed, device))


def seeded_generator(seed: int | None, device: torch.device | str) -> torch.Generator | None:
    """A generator for draws on a device; None, for torch's global one, without a seed.

    Raises:
        ValueError: the seed is no integer of 64 bits.
    """
    if seed is None:
        return None
    try:
        if isinstance(seed, bool):
            raise TypeError
        return torch.Generator(device).manual_seed(index(seed))
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"seed must be an integer of 64 bits, got {seed!r}") from error
