"""The rows of self-distillation: the target writes prompts and answers, many side by side.

Every slot of a batch is a state machine: it samples a user turn after the chat template's opening,
reads the template's turn change, and writes the answer. One forward pass per step serves all slots,
whatever their states.

Each row has random numbers of its own and every pass has the same number of rows, so a row is the
same whichever rows are written beside it: on one machine or on several.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoTokenizer, LogitsProcessorList, PreTrainedTokenizerBase

from eaglerl.eagle3.generation_config.generation_settings import GenerationSettings
from eaglerl.eagle3.sampling import process_row
from eaglerl.eagle3.stopping import read_token_ids
from eaglerl.eagle3.target.target_files import read_target_config
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.training.prompt_pieces import PromptPieces, prompt_pieces
from eaglerl.training.slot_engine import SlotEngine, load_slot_target

# Most tokens of a user turn, and the fewest that the target's context must have room for.
_MOST_ROOM, _LEAST_ROOM = 256, 16


#: The target's tokenizer, what surrounds a prompt, and the most tokens of a user turn.
TargetPieces = tuple[PreTrainedTokenizerBase, PromptPieces, int]


@dataclass(frozen=True)
class RowOptions:
    """What rows depend on.

    Attributes:
        target: folder of the target.
        slots: sequences that are decoded side by side.
        max_new_tokens: longest response, in tokens.
        seed: seed of all draws.
        dtype: see `load_slot_target`.
        openings: texts with which half of the user turns begin; empty for none.

    Raises:
        ValueError: a number is below 1.
    """

    target: Path
    slots: int
    max_new_tokens: int
    seed: int
    dtype: str
    openings: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("slots", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Row:
    """A prompt and the target's response.

    Attributes:
        number: its number in its stream.
        prompt: token ids of the chat template up to the answer.
        response: token ids of the answer.
        passes: number of passes that wrote it.
    """

    number: int
    prompt: list[int]
    response: list[int]
    passes: int


@dataclass
class _Slot:
    """State of one sequence: its tokens so far, and what it writes."""

    number: int
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)
    turning: bool = False
    prompt_length: int = 0
    prompt_limit: int = 0
    temperature: float = 1.0
    position: int = 0
    passes: int = 0
    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)

    @property
    def answering(self) -> bool:
        return self.prompt_length > 0

    def random(self) -> float:
        return float(torch.rand((), generator=self.generator))


def read_pieces(options: RowOptions) -> TargetPieces:
    """Return the target's tokenizer, what surrounds a prompt, and the most tokens of a user turn.

    Raises:
        ValueError: a chat template that alters the user's text, or the target's context has no room
            for a prompt.
    """
    config = read_target_config(options.target)
    tokenizer = AutoTokenizer.from_pretrained(options.target)
    pieces = prompt_pieces(tokenizer)
    around = len(pieces.opening) + len(pieces.turn_change)
    room = config.max_position_embeddings - around - options.max_new_tokens - 1
    if room < _LEAST_ROOM:
        most = options.max_new_tokens + room - _LEAST_ROOM
        raise ValueError(
            f"max_new_tokens must be at most {most}, so that a prompt fits the target's context of "
            f"{config.max_position_embeddings}, got {options.max_new_tokens}"
        )
    return tokenizer, pieces, min(room, _MOST_ROOM)


class RowWriter:
    """The target at work: what each slot reads next, and what becomes of its prediction.

    Attributes:
        target: the target.
    """

    def __init__(self, options: RowOptions, pieces: TargetPieces | None = None) -> None:
        """Load the target.

        Args:
            options: what the rows depend on.
            pieces: from `read_pieces`, if it was called before.

        Raises:
            ValueError: see `read_pieces` and `load_slot_target`; or the target has stop rules
                beyond tokens and length.
        """
        tokenizer, self._pieces, self._room = pieces or read_pieces(options)
        self.target = load_slot_target(options.target, options.dtype)
        self._options = options
        self._settings = _generation_settings(self.target, options.max_new_tokens)
        eos = read_token_ids(tokenizer.eos_token_id, "eos_token_id")
        self._stop_ids = {*self._settings.eos_token_ids, *eos}
        self._openings = [
            tokenizer(text, add_special_tokens=False).input_ids[: max(self._room - 8, 0)]
            for text in options.openings
        ]
        around = len(self._pieces.opening) + len(self._pieces.turn_change)
        longest = around + self._room + options.max_new_tokens + 1
        prefix = self._pieces.opening[:-1]
        with torch.inference_mode():
            self._engine = SlotEngine(self.target, prefix, options.slots, longest)

    def rows(
        self, stream: int, begin: int = 0, end: int | None = None
    ) -> Generator[Row, None, None]:
        """Yield rows in the order in which they are complete, of equal ones the lower number first.

        Args:
            stream: which stream of rows: every stream has other random numbers.
            begin: number of the first row of the stream to write.
            end: number behind the last one; None for rows without an end.
        """
        numbers: Iterator[int] = itertools.count(begin)
        if end is not None:
            numbers = iter(range(begin, end))
        base = _stream_seed(self._options.seed, stream)
        slots = [self._next(index, numbers, base) for index in range(self._options.slots)]
        while any(slots):
            for slot, index in sorted(self._step(slots), key=lambda entry: entry[0].number):
                length = slot.prompt_length
                yield Row(slot.number, slot.tokens[:length], slot.tokens[length:], slot.passes)
                slots[index] = self._next(index, numbers, base)

    @torch.inference_mode()
    def _step(self, slots: Sequence[_Slot | None]) -> list[tuple[_Slot, int]]:
        """Advance all slots by a token; return those that have finished, with their indices."""
        # A slot without a row takes part: passes of another size would sum in another order.
        opening = self._pieces.opening
        tokens = torch.tensor([slot.tokens[-1] if slot else opening[-1] for slot in slots])
        places = [slot.position if slot else len(opening) - 1 for slot in slots]
        logits = self._engine.step(tokens, torch.tensor(places, dtype=torch.int32))
        busy = [(index, slot) for index, slot in enumerate(slots) if slot]
        for index, slot in busy:
            if slot.processors:
                logits[index] = process_row(slot.processors, slot.tokens, logits[index])
        chosen = choose_tokens(
            logits[[index for index, _ in busy]],
            torch.tensor([slot.temperature for _, slot in busy]),
            [slot.generator for _, slot in busy],
        )
        pairs = zip(busy, chosen.tolist(), strict=True)
        return [
            (slot, index) for (index, slot), predicted in pairs if self._advance(slot, predicted)
        ]

    @torch.inference_mode()
    def _next(self, index: int, numbers: Iterator[int], base: int) -> _Slot | None:
        """Begin the next row in a slot; None if there is none."""
        number = next(numbers, None)
        if number is None:
            return None
        self._engine.restart(index)
        return self._start(number, torch.Generator().manual_seed((base + number) % (1 << 32)))

    def _start(self, number: int, generator: torch.Generator) -> _Slot:
        """Return a new slot; its cache holds the template's opening except the last token."""
        opening = self._pieces.opening
        slot = _Slot(number, generator, tokens=[*opening], position=len(opening) - 1)
        if self._openings and slot.random() < 0.5:
            slot.forced = [*self._openings[int(slot.random() * len(self._openings))]]
        # Half of the user turns have up to 48 tokens, 35 % up to 96, 15 % up to 192.
        draw = slot.random()
        limit = 48 if draw < 0.5 else 96 if draw < 0.85 else 192
        slot.prompt_limit = len(opening) + min(max(limit, len(slot.forced) + 8), self._room)
        slot.temperature = 0.6 + 0.4 * slot.random()
        return slot

    def _advance(self, slot: _Slot, predicted: int) -> bool:
        """Advance a slot by one token; return whether its answer is finished."""
        slot.position += 1
        slot.passes += 1
        if not slot.forced and not slot.answering and self._ends_prompt(slot, predicted):
            slot.forced = [*self._pieces.turn_change]
            slot.turning = True
            if not slot.forced and predicted in self._stop_ids:
                slot.prompt_length = len(slot.tokens)
        if slot.forced:
            slot.tokens.append(slot.forced.pop(0))
        else:
            slot.tokens.append(predicted)
        if slot.turning and not slot.forced and not slot.answering:
            slot.prompt_length = len(slot.tokens)
            slot.temperature = 0.0 if slot.random() < 2 / 3 else 0.7
            slot.processors = self._settings.processors(slot.tokens)
            return False
        return slot.answering and (
            predicted in self._stop_ids
            or len(slot.tokens) - slot.prompt_length >= self._options.max_new_tokens
        )

    def _ends_prompt(self, slot: _Slot, predicted: int) -> bool:
        return predicted in self._stop_ids or len(slot.tokens) + 1 >= slot.prompt_limit


def choose_tokens(
    logits: torch.Tensor,
    temperatures: torch.Tensor,
    generator: torch.Generator | Sequence[torch.Generator],
) -> torch.Tensor:
    """Choose the next token of every row: the argmax at temperature 0, else a draw.

    Args:
        logits: (B, V) float.
        temperatures: (B,) float32, >= 0.
        generator: source of the draws, or one source for every row.

    Returns:
        (B,) int64.
    """
    chosen = logits.argmax(-1)
    sampled = (temperatures > 0).nonzero().squeeze(-1)
    if len(sampled):
        scaled = logits[sampled].float() / temperatures[sampled, None]
        cumulative = torch.softmax(scaled, -1).cumsum(-1)
        uniform = _uniform(sampled.tolist(), generator) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, uniform).squeeze(-1)
        chosen[sampled] = drawn.clamp_max(logits.shape[-1] - 1)
    return chosen


def _uniform(
    rows: Sequence[int], generator: torch.Generator | Sequence[torch.Generator]
) -> torch.Tensor:
    """Return (rows, 1) draws from [0, 1)."""
    if isinstance(generator, torch.Generator):
        return torch.rand(len(rows), 1, generator=generator)
    return torch.cat([torch.rand(1, 1, generator=generator[row]) for row in rows])


def _stream_seed(seed: int, stream: int) -> int:
    """Return the seed of a stream's first row; the next rows' follow.

    A CPU's generator takes 32 bits of its seed. Consecutive ones differ in any case, and hashing
    keeps the rows of other seeds and streams apart.
    """
    digest = hashlib.blake2b(f"{seed} {stream}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def _generation_settings(target: TargetModel, max_new_tokens: int) -> GenerationSettings:
    settings = GenerationSettings.read(
        target.config,
        target.generation_config,
        target.device,
        max_new_tokens=max_new_tokens,
    )
    settings.check_ends_by_tokens()
    return settings
