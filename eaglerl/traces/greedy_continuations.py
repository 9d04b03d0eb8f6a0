"""Greedy continuations of many prompts, decoded side by side, with the target's features."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from transformers import LogitsProcessorList

from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.generation_config.generation_settings import GenerationSettings
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.sampling import process_row
from eaglerl.eagle3.target.block_target import BlockTarget
from eaglerl.eagle3.target.target_model import TargetModel

# Spare rows when the cache grows, so that it grows rarely.
_SPARE_ROWS = 256


@dataclass(frozen=True, slots=True)
class GreedyText:
    """A prompt and its greedy continuation.

    Attributes:
        index: number of the prompt.
        prompt_ids: n tokens.
        token_ids: the continuation, and the `tail` tokens that the target would write after it.
        new_tokens: number of tokens of the continuation, an end-of-sequence token included.
        features: (n + new_tokens + tail - 1, 3k) float32, of all tokens but the last.
    """

    index: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    new_tokens: int
    features: torch.Tensor


def greedy_texts(
    target: TargetModel,
    prompts: Iterable[Sequence[int]],
    *,
    max_new_tokens: int,
    tail: int,
    eos_token_ids: Collection[int],
    slots: int = 16,
    settings: GenerationSettings | None = None,
) -> Iterator[GreedyText]:
    """Decode greedily, one token per pass and sequence, several sequences per pass.

    A product of several rows costs hardly more than one of a single row, so this is the fastest way
    to the continuations of many prompts. If the two best logits of a target in float32 are closer
    than its rounding, a batch may choose another token than a sequence decoded alone.

    Args:
        target: the target.
        prompts: token ids of the prompts.
        max_new_tokens: longest continuation.
        tail: number of tokens to decode past the end, whatever they are.
        eos_token_ids: tokens that end a continuation.
        slots: number of sequences side by side; a target that runs through transformers' modules
            has one.
        settings: settings whose logits processors are applied to every row; none by default.

    Yields:
        The texts, in the order of completion.
    """
    slots = slots_of(target, slots)
    batch = _Batch(target, slots, max_new_tokens, tail, frozenset(eos_token_ids), settings)
    waiting = enumerate(prompts)
    exhausted = False
    while True:
        while not exhausted and batch.has_room:
            entry = next(waiting, None)
            exhausted = entry is None
            if entry is not None:
                batch.start(entry[0], list(entry[1]))
        if not batch.active:
            return
        batch.advance()
        yield from batch.finished()


def slots_of(target: TargetModel, slots: int) -> int:
    """Return how many of the slots asked for `greedy_texts` uses."""
    return slots if isinstance(target, BlockTarget) else 1


@dataclass(slots=True)
class _Sequence:
    """A sequence in the batch; `ended` is the length of its continuation once it has ended."""

    index: int
    prompt: list[int]
    features: list[torch.Tensor]
    processors: LogitsProcessorList
    tokens: list[int] = field(default_factory=list)
    ended: int | None = None

    @property
    def position(self) -> int:
        return len(self.prompt) + len(self.tokens) - 1

    def choose(self, logits: torch.Tensor) -> int:
        """Choose the next token from the target's (V,) logits."""
        if self.processors:
            logits = process_row(self.processors, [*self.prompt, *self.tokens], logits)
        return int(logits.argmax())


class _Batch:
    """The sequences that are decoded side by side, by slot."""

    def __init__(
        self,
        target: TargetModel,
        slots: int,
        max_new_tokens: int,
        tail: int,
        eos_token_ids: frozenset[int],
        settings: GenerationSettings | None,
    ) -> None:
        self._target = target
        self._slots = slots
        self._max_new_tokens = max_new_tokens
        self._tail = tail
        self._eos_token_ids = eos_token_ids
        self._settings = settings
        self._cache: KVCache | None = None
        self.active: dict[int, _Sequence] = {}

    @property
    def has_room(self) -> bool:
        return len(self.active) < self._slots

    def start(self, index: int, prompt: list[int]) -> None:
        """Read a prompt into a free slot."""
        cache = self._reserve(len(prompt) + self._max_new_tokens + self._tail)
        slot = next(free for free in range(self._slots) if free not in self.active)
        processors = LogitsProcessorList()
        if self._settings is not None:
            processors = self._settings.processors(prompt)
        sequence = _Sequence(index, prompt, [], processors)
        chunk = self._target.chunk_size
        for begin in range(0, len(prompt), chunk):
            rows = RowBatch.causal(prompt[begin : begin + chunk], begin, slot)
            output = self._target.forward(rows, cache, "last")
            sequence.features.append(output.features.clone())
        assert output.logits is not None  # because "last" asks for them
        self.active[slot] = sequence
        self._add(sequence, sequence.choose(output.logits[0]))

    def advance(self) -> None:
        """Decode one more token of every sequence."""
        assert self._cache is not None  # made by `start`
        sequences = list(self.active.values())
        token_ids = torch.tensor([sequence.tokens[-1] for sequence in sequences])
        positions = torch.tensor([s.position for s in sequences], dtype=torch.int32)
        if self._slots == 1:
            rows = RowBatch.causal(token_ids, sequences[0].position)
        else:
            slots = torch.tensor(list(self.active), dtype=torch.int32)
            rows = RowBatch(token_ids, positions, positions, positions + 1, slots=slots)
        output = self._target.forward(rows, self._cache, "all")
        assert output.logits is not None
        features = output.features.clone()
        for row, token in enumerate(output.logits.argmax(-1).tolist()):
            sequence = sequences[row]
            sequence.features.append(features[row : row + 1])
            processed = sequence.choose(output.logits[row]) if sequence.processors else token
            self._add(sequence, processed)

    def finished(self) -> Iterator[GreedyText]:
        """Remove and yield the sequences whose tail is complete."""
        for slot, sequence in list(self.active.items()):
            if sequence.ended is None or len(sequence.tokens) < sequence.ended + self._tail:
                continue
            del self.active[slot]
            count = sequence.ended + self._tail
            yield GreedyText(
                sequence.index,
                tuple(sequence.prompt),
                tuple(sequence.tokens[:count]),
                sequence.ended,
                torch.cat(sequence.features)[: len(sequence.prompt) + count - 1],
            )

    def _add(self, sequence: _Sequence, token: int) -> None:
        sequence.tokens.append(token)
        count = len(sequence.tokens)
        last = token in self._eos_token_ids or count >= self._max_new_tokens
        if last and sequence.ended is None:
            sequence.ended = count

    def _reserve(self, capacity: int) -> KVCache:
        """Return the cache, grown to a capacity if necessary."""
        if self._cache is not None and self._cache.capacity >= capacity:
            return self._cache
        grown = self._target.new_cache(capacity + _SPARE_ROWS, self._slots)
        if self._cache is not None:
            grown.data[..., : self._cache.capacity, :] = self._cache.data
        self._cache = grown
        return grown
