"""Which drafted tokens the target keeps: greedy, or sampled without changing its distribution."""

from __future__ import annotations

from typing import Protocol

import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from eaglerl.ops import DraftTree, accept_path

#: Below it, logits over the temperature come near the largest float32.
_COLD = 1e-30


class Verifier(Protocol):
    """Turns the target's logits of a tree into the path that is kept."""

    def next_token(self, logits: torch.Tensor) -> int:
        """The token after a single row of logits (V,)."""

    def accept(self, logits: torch.Tensor, tree: DraftTree) -> tuple[list[int], int]:
        """Rows of the accepted path, the root first, and the bonus token after them."""

    def choices(self, logits: torch.Tensor) -> torch.Tensor:
        """(T,) int64: what the target puts after each of (T, V) rows, without leaving the device.

        The path from the root that follows these choices, and its last choice, are those of
        `accept`, or are distributed as they are.
        """


class GreedyVerifier:
    """Keeps what the target's argmax would have written."""

    def next_token(self, logits: torch.Tensor) -> int:
        """The argmax of (V,) logits."""
        return int(logits.argmax())

    def accept(self, logits: torch.Tensor, tree: DraftTree) -> tuple[list[int], int]:
        """Follow the argmax from the root for as long as the tree has it.

        Siblings carry distinct tokens, so at most one child matches and the path is unique.

        Args:
            logits: (T, V).
            tree: the tree of T rows.
        """
        choices = self.choices(logits).cpu()
        rows = accept_path(tree.parents, tree.token_ids, choices).tolist()
        return rows, int(choices[rows[-1]])

    def choices(self, logits: torch.Tensor) -> torch.Tensor:
        """The argmax of every row."""
        return logits.argmax(-1)


class _ColdTemperature:
    """Divides logits by a temperature so small that the quotients would overflow.

    The best logit is subtracted first, which changes no probability: then the others go to minus
    infinity, and the draw to the argmax, as is the limit.
    """

    def __init__(self, temperature: float) -> None:
        # What is smaller than float32's smallest normal number would divide by zero.
        self._temperature = max(temperature, torch.finfo(torch.float32).tiny)

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
        return (scores - scores.max(dim=-1, keepdim=True).values) / self._temperature


class SamplingVerifier:
    """Lossless sampling: the output has the distribution of sampling from the target alone.

    EAGLE's proposals are deterministic, so its rejection sampling (Leviathan et al. 2023, theorem
    3.5; SpecInfer, section 4.3) has the law of a simpler procedure: draw one token from the
    target's distribution at the current node; if a child carries it, go there, else stop: the draw
    is the bonus. The draw does not depend on the tree, therefore neither does the distribution of
    the text.
    """

    def __init__(
        self, temperature: float, top_p: float, top_k: int, generator: torch.Generator | None = None
    ) -> None:
        """Set up transformers' own warpers, in the order in which its `generate` applies them.

        Raises:
            ValueError: temperature <= 0, top_p outside (0, 1], top_k < 0.
        """
        if not temperature > 0:
            raise ValueError(f"temperature must be positive to sample, got {temperature}")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {top_p}")
        if top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or positive, got {top_k}")
        warpers = LogitsProcessorList()
        if temperature < _COLD:
            warpers.append(_ColdTemperature(temperature))
        elif temperature != 1.0:
            warpers.append(TemperatureLogitsWarper(float(temperature)))
        if top_k:
            warpers.append(TopKLogitsWarper(int(top_k)))
        if top_p < 1.0:
            warpers.append(TopPLogitsWarper(float(top_p)))
        self._warpers = warpers
        self._generator = generator

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Warped distribution (V,) of one row of logits (V,), in float32."""
        return torch.softmax(self._warpers(None, logits[None].float()), dim=-1)[0]

    def next_token(self, logits: torch.Tensor) -> int:
        """A draw from the warped distribution of (V,) logits."""
        return int(torch.multinomial(self.probabilities(logits), 1, generator=self._generator))

    def accept(self, logits: torch.Tensor, tree: DraftTree) -> tuple[list[int], int]:
        """Walk down the tree, one draw per visited node; rows that are not reached cost nothing."""
        parents, tokens = tree.parents.tolist(), tree.token_ids.tolist()
        children = {(parents[row], tokens[row]): row for row in range(1, len(tokens))}
        rows = [0]
        while True:
            token = self.next_token(logits[rows[-1]])
            child = children.get((rows[-1], token))
            if child is None:
                return rows, token
            rows.append(child)

    def choices(self, logits: torch.Tensor) -> torch.Tensor:
        """One draw for every row: those of rows off the path are simply not used."""
        probabilities = torch.softmax(self._warpers(None, logits.float()), dim=-1)
        return torch.multinomial(probabilities, 1, generator=self._generator)[:, 0]


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
    if temperature < 0:
        raise ValueError(f"temperature must be 0 (greedy) or positive, got {temperature}")
    sampling = SamplingVerifier(
        temperature or 1.0,
        top_p,
        top_k,
        None if seed is None else torch.Generator(device).manual_seed(seed),
    )
    return sampling if temperature > 0 else GreedyVerifier()
