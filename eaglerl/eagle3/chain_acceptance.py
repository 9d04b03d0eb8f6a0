"""How many tokens of a drafted chain a target accepts, position by position."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eaglerl.eagle3.decoder import SpeculativeDecoder
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.policy import TreeParams
from eaglerl.eagle3.target.target_model import TargetModel


@dataclass(frozen=True)
class ChainAcceptance:
    """The cycles of greedy decoding with a chain of k drafted tokens.

    Attributes:
        cycles: number of cycles.
        accepted: for each of the k positions, in how many of them it was accepted.
        texts: the new tokens of every prompt.
        sizes: for every prompt, the accepted tokens of each of its cycles; empty where only their
            sums are known.
    """

    cycles: int
    accepted: tuple[int, ...]
    texts: tuple[tuple[int, ...], ...]
    sizes: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(
        cls,
        sizes: Iterable[Iterable[int]],
        texts: Iterable[Sequence[int]],
        *,
        chain: int,
        new_tokens: int,
    ) -> ChainAcceptance:
        """Count the cycles that begin before a number of tokens.

        Args:
            sizes: for every prompt, the accepted drafted tokens of each cycle.
            texts: the new tokens of every prompt; the first one came before the first cycle.
            chain: k, drafted tokens per cycle.
            new_tokens: the number.
        """
        kept = tuple(_before(cycles, new_tokens) for cycles in sizes)
        counted = [size for prompt in kept for size in prompt]
        positions = (sum(size > position for size in counted) for position in range(chain))
        cut = tuple(tuple(text[:new_tokens]) for text in texts)
        return cls(len(counted), tuple(positions), cut, kept)

    @property
    def rates(self) -> tuple[float, ...]:
        """For each position, the share of cycles that accepted it."""
        return tuple(count / self.cycles for count in self.accepted)

    @property
    def mean_length(self) -> float:
        """Tokens per cycle: the accepted ones and the bonus."""
        return 1 + sum(self.accepted) / self.cycles


def _before(sizes: Iterable[int], new_tokens: int) -> tuple[int, ...]:
    """Return the cycles that begin before a number of tokens, the first of which precedes them."""
    kept, tokens = [], 1
    for accepted in sizes:
        if tokens >= new_tokens:
            break
        kept.append(accepted)
        tokens += accepted + 1
    return tuple(kept)


def chain_acceptance(
    target: TargetModel,
    head: Eagle3DraftHead,
    prompts: Sequence[Sequence[int]],
    *,
    chain: int = 3,
    new_tokens: int = 64,
) -> ChainAcceptance:
    """Decode prompts greedily with chains, and count what is accepted at every position.

    Tokens that end a text do not, so that every prompt has as many. Cycles that begin before
    ``new_tokens`` are counted, each with a whole chain.

    Args:
        target: the target.
        head: the head, in float32.
        prompts: token ids.
        chain: k, drafted tokens per cycle.
        new_tokens: tokens of every prompt, the first one included.

    Raises:
        ValueError: the head does not fit the target, or a prompt is too long.
    """
    decoder = SpeculativeDecoder(target, head, draft_dtype="float32")
    params = TreeParams(total_tokens=chain + 1, depth=chain, top_k=1)
    outputs = [
        decoder.generate(
            [list(prompt)],
            params,
            # Without a mask, a token that pads and no longer ends a text would be padding.
            attention_mask=[[1] * len(prompt)],
            # The last cycles, which are cut short, come after those that count.
            max_new_tokens=new_tokens + chain + 1,
            eos_token_id=[],
            do_sample=False,
        )
        for prompt in prompts
    ]
    return ChainAcceptance.of(
        ([cycle.accepted for cycle in output.per_sequence[0].cycles] for output in outputs),
        (output.new_ids[0] for output in outputs),
        chain=chain,
        new_tokens=new_tokens,
    )
