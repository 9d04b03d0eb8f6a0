"""Verification of drafted tokens: greedy, or by sampling that keeps the target's distribution."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from operator import index
from typing import cast

import torch
from transformers import (
    EpsilonLogitsWarper,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from eaglerl.eagle3.stopping import StoppingRules
from eaglerl.eagle3.tree.device_tree import TreeRows
from eaglerl.eagle3.verifier import Verifier
from eaglerl.ops import DraftTree, accept_path, greedy_paths

#: Below this temperature, logits divided by it come near the largest float32, 3.4e38.
_COLD = 1e-30


class GreedyVerifier:
    """Greedy decoding: the tokens are the argmax of the target's logits."""

    settings = "greedy"
    draws = False

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Do nothing: the argmax of a row does not depend on the text."""

    def next_token(self, logits: torch.Tensor) -> int:
        """Return the argmax of (V,) logits."""
        return int(logits.argmax())

    def accept(self, logits: torch.Tensor, tree: DraftTree | TreeRows) -> tuple[list[int], int]:
        """Follow the argmax from the root as long as a child has that token.

        Siblings carry distinct tokens, so at most one child matches and the path is unique.

        Args:
            logits: (T, V).
            tree: the tree of T rows.
        """
        if logits.device.type == "cpu" and isinstance(tree, DraftTree):
            (path,) = greedy_paths(logits.float().contiguous(), [tree])
            return path.rows, path.tokens[-1]
        choices = self.choices(logits).cpu()
        rows = accept_path(tree.parents.int(), tree.token_ids, choices).tolist()
        return rows, int(choices[rows[-1]])

    def choices(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the argmax of every row."""
        return logits.argmax(-1)

    def draw(self, times: torch.Tensor) -> None:
        """Do nothing."""

    def choices_by(self, logits: torch.Tensor, times: torch.Tensor | None) -> torch.Tensor:
        """Return the argmax of every row."""
        return logits.argmax(-1)


class ColdTemperature:
    """A division of logits by a temperature so small that the quotients would overflow.

    The best logit is subtracted first, which changes no probability. Then all others go towards
    minus infinity and the draw towards the argmax, which is the limit for temperature 0.
    """

    def __init__(self, temperature: float) -> None:
        """Take a temperature above 0."""
        # A temperature below the smallest normal float32, 1.2e-38, may be flushed to zero.
        self._temperature = max(temperature, torch.finfo(torch.float32).tiny)

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
        """Return (B, V) scores divided by the temperature."""
        return (scores - scores.max(dim=-1, keepdim=True).values) / self._temperature


# Warpers of transformers that compute all on the device. Others may ask it something: that of
# eta_cutoff validates a distribution.
_UNWAITING = (
    TemperatureLogitsWarper,
    ColdTemperature,
    TopKLogitsWarper,
    TopPLogitsWarper,
    MinPLogitsWarper,
    EpsilonLogitsWarper,
    TypicalLogitsWarper,
)


class _Walker:
    """A walk down the tree with one choice per visited row; rows off the path cost nothing.

    The walk stops at the end of the sequence, so that nothing is drawn and no processor is called
    for a token that does not belong to the text.
    """

    def __init__(self, rules: StoppingRules | None) -> None:
        self._rules = rules
        self._text: list[int] = []
        self._prompt_length = 0

    @property
    def reads_text(self) -> bool:
        """Whether the choices depend on the text, so that this serves one sequence at a time."""
        return self._rules is not None

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Begin a sequence, whose tokens are tracked from here."""
        self._text = list(prompt_ids)
        self._prompt_length = len(prompt_ids)

    def next_token(self, logits: torch.Tensor) -> int:
        """Choose the token after a row of (V,) logits and append it to the text."""
        token = self._choose(logits)
        self._text.append(token)
        return token

    def accept(self, logits: torch.Tensor, tree: DraftTree | TreeRows) -> tuple[list[int], int]:
        """Choose a token after the root, go to the child with that token, and so on.

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
    3.5; SpecInfer, section 4.3) has the same law as a simpler procedure: draw one token from the
    target's distribution at the current node. If a child has that token, go there; else stop, and
    the draw is the bonus. The draw does not depend on the tree, so the distribution of the text
    does not either.
    """

    draws = True

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
            top_k: number of most likely tokens to keep; 0 is off.
            generator: generator of the draws; torch's global one by default.
            warpers: processors that need a row's logits only; they replace the warpers of the three
                values above.
            rules: end the walk down the tree where they end the sequence.

        Raises:
            ValueError: temperature <= 0, top_p outside (0, 1], or top_k < 0.
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
        """Return the warped distribution (V,) of one row of logits (V,), in float32."""
        return self._warped(logits[None])[0]

    def choices(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw a token for every row; draws of rows off the path are not used."""
        return _draw(self._warped(logits), self._generator)

    @property
    def settings(self) -> Hashable | None:
        """See `CapturableVerifier`: the warpers and their numbers, if all are known not to wait."""
        if any(type(warper) not in _UNWAITING for warper in self._warpers):
            return None
        return tuple((type(warper), *sorted(vars(warper).items())) for warper in self._warpers)

    def draw(self, times: torch.Tensor) -> None:
        """Fill (T, V) float32 with exponentially distributed times, as `choices` draws them."""
        times.exponential_(generator=self._generator)

    def choices_by(self, logits: torch.Tensor, times: torch.Tensor | None) -> torch.Tensor:
        """Choose the token of each row whose time, divided by its probability, comes first."""
        assert times is not None, "draw() fills them"
        return (self._warped(logits) / times).argmax(-1)

    def _warped(self, logits: torch.Tensor) -> torch.Tensor:
        scores = logits.float()
        # A LogitsProcessorList can be called, too, but demands ids. Warpers do not read them.
        for warper in self._warpers:
            scores = warper(None, scores)
        return torch.softmax(scores, dim=-1)

    def _choose(self, logits: torch.Tensor) -> int:
        """Draw from the warped distribution."""
        return int(_draw(self._warped(logits[None]), self._generator))


class ProcessingVerifier(_Walker):
    """Verification with logits processors that read the text: each row gets the path to it.

    The processors are called as transformers' `generate` calls them: once per token of the text, in
    order, with (1, L) ids and their own copy of (1, V) float32 logits.
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
            processors: processors of one sequence.
            do_sample: whether to draw from the processed distribution or to take its argmax.
            generator: generator of the draws; torch's global one by default.
            rules: end the walk down the tree where they end the sequence.
            padding: tokens that processors see before the prompt.
        """
        super().__init__(rules)
        self._processors = processors
        self._do_sample = do_sample
        self._generator = generator
        self._padding = list(padding)

    @property
    def reads_text(self) -> bool:
        """Whether the choices depend on the text: always, through the processors."""
        return True

    def _choose(self, logits: torch.Tensor) -> int:
        scores = process_row(self._processors, [*self._padding, *self._text], logits)
        if not self._do_sample:
            return int(scores.argmax(-1))
        return int(_draw(torch.softmax(scores, dim=-1)[None], self._generator))


def _draw(probabilities: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Draw a token from each of (T, V) distributions, (T,) int64."""
    if probabilities.device.type == "cpu":
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    # What `multinomial` does for one draw, without its check of the probabilities, for which the
    # host waits for a device.
    times = torch.empty_like(probabilities).exponential_(generator=generator)
    return (probabilities / times).argmax(-1)


def process_row(
    processors: LogitsProcessorList, token_ids: Sequence[int], logits: torch.Tensor
) -> torch.Tensor:
    """Apply logits processors to one row.

    Args:
        processors: processors of one sequence.
        token_ids: L tokens of the sequence.
        logits: (V,) logits after them; not changed.

    Returns:
        (V,) float32 scores.
    """
    ids = torch.tensor([list(token_ids)]).to(logits.device)
    # A copy: a processor may write into its input.
    scores = logits[None].to(torch.float32, copy=True)
    # transformers annotates ids with the class of its legacy constructor.
    return processors(cast("torch.LongTensor", ids), scores)[0]


def temperature_warper(temperature: float) -> TemperatureLogitsWarper | ColdTemperature:
    """Return a processor that divides logits by a temperature above 0."""
    if temperature < _COLD:
        return ColdTemperature(temperature)
    return TemperatureLogitsWarper(float(temperature))


def check_sampling(temperature: float, top_p: float, top_k: int) -> None:
    """Check the ranges of temperature, top_p and top_k.

    Raises:
        ValueError: temperature < 0, top_p outside (0, 1], or top_k < 0.
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
    """Make a greedy verifier for temperature 0, a sampling one above.

    Args:
        temperature: 0 for greedy.
        top_p: nucleus mass in (0, 1]; 1 is off.
        top_k: number of most likely tokens to keep; 0 is off.
        seed: seed of the draws; None draws from torch's global generator, as transformers does.
        device: device of the logits.

    Raises:
        ValueError: a value is out of range.
    """
    check_sampling(temperature, top_p, top_k)
    if temperature == 0:
        return GreedyVerifier()
    return SamplingVerifier(temperature, top_p, top_k, seeded_generator(seed, device))


def seeded_generator(seed: int | None, device: torch.device | str) -> torch.Generator | None:
    """Make a generator for draws on a device; None, which is torch's global one, without a seed.

    Raises:
        ValueError: the seed is not a 64-bit integer.
    """
    if seed is None:
        return None
    try:
        if isinstance(seed, bool):
            raise TypeError
        return torch.Generator(device).manual_seed(index(seed))
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"seed must be a 64-bit integer, got {seed!r}") from error
