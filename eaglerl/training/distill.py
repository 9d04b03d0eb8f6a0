"""Self-distillation: the target writes its own prompts and answers.

Every slot of a batch is a state machine: it samples a user turn after the chat template's opening,
reads the template's turn change, and writes the answer. One forward pass per step serves all slots,
whatever their states.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import AutoTokenizer, LogitsProcessorList, PreTrainedTokenizerBase

from eaglerl.eagle3.generation_config.generation_settings import GenerationSettings
from eaglerl.eagle3.sampling import process_row
from eaglerl.eagle3.stopping import read_token_ids
from eaglerl.eagle3.target.target_files import read_target_config
from eaglerl.eagle3.target.target_model import TargetModel, checked_feature_layers
from eaglerl.files import exclusive_file
from eaglerl.json_file import read_lines
from eaglerl.training.data import parse_row
from eaglerl.training.prompt_pieces import ChatTemplatePieces, PromptPieces, prompt_pieces
from eaglerl.training.slot_engine import SlotEngine, load_slot_target

__all__ = [
    "DEFAULT_OPENINGS",
    "ChatTemplatePieces",
    "DistillProgress",
    "append_row",
    "choose_tokens",
    "distill",
    "recover",
]

#: Openings of a user turn that steer some of the sampled prompts towards kinds of text that a model
#: seldom asks for by itself. The model continues the opening, so the prompts still differ.
DEFAULT_OPENINGS: tuple[str, ...] = (
    "Write a Python function that",
    "Complete the following Python function:\n```python\ndef ",
    "Solve this problem step by step:",
    "A farmer has",
    "Summarize the following text:\n",
    "Summarize the following article:\n(CNN)",
    "Who was",
    "What is the",
    "When did",
    "Explain",
    "Write a short story about",
    "Write an email to",
    "Imagine you are",
    "Compare",
    "How many",
    "Translate",
)
# Most tokens of a user turn, and the fewest that the target's context must have room for.
_MOST_ROOM, _LEAST_ROOM = 256, 16


@dataclass
class DistillProgress:
    """What a run has written so far; passed to the progress callback after every finished row."""

    rows: int
    response_tokens: int
    prompt_tokens: int


@dataclass
class _Slot:
    """State of one sequence: its tokens so far, and what it writes."""

    tokens: list[int] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)
    turning: bool = False
    prompt_length: int = 0
    prompt_limit: int = 0
    temperature: float = 1.0
    position: int = 0
    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)

    @property
    def answering(self) -> bool:
        return self.prompt_length > 0


def append_row(path: Path, prompt: Sequence[int], response: Sequence[int]) -> None:
    """Append one JSON line in a single write: a killed process leaves no partial line."""
    line = json.dumps({"p": list(prompt), "r": list(response)}, separators=(",", ":")) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        data = line.encode()
        written = os.write(descriptor, data)
        if written != len(data):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
            raise OSError(f"could not write a whole line to {path}: is the disk full?")
    finally:
        os.close(descriptor)


def recover(path: Path) -> DistillProgress:
    """Count the rows of an earlier run and cut off a line that it did not finish.

    Args:
        path: the JSONL file; it need not exist.

    Returns:
        The rows and tokens that the file holds.

    Raises:
        ValueError: a line in the middle of the file is not a row of token ids.
    """
    progress = DistillProgress(0, 0, 0)
    if not os.path.lexists(path):
        return progress
    complete = 0
    for line in read_lines(path, "rows", keep_blank=True):
        if not line.ended:
            break
        row = parse_row(line.data, line.where)
        complete += len(line.data) + 1
        progress.rows += 1
        progress.prompt_tokens += len(row.prompt)
        progress.response_tokens += len(row.response)
    os.truncate(path, complete)
    return progress


class _Writer:
    """The state machine of the slots: what each reads next, and what becomes of its prediction."""

    def __init__(
        self,
        pieces: PromptPieces,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int,
        openings: Sequence[str],
        room: int,
        target: TargetModel,
    ) -> None:
        settings = _generation_settings(target, max_new_tokens)
        self.settings = settings
        self.pieces = pieces
        eos = read_token_ids(tokenizer.eos_token_id, "eos_token_id")
        self.stop_ids = {*settings.eos_token_ids, *eos}
        self.max_new_tokens = max_new_tokens
        # Most tokens of a user turn.
        self.room = room
        self.openings = [
            tokenizer(text, add_special_tokens=False).input_ids[: max(room - 8, 0)]
            for text in openings
        ]
        self.generator = torch.Generator()
        # Tokens of the longest row.
        around = len(pieces.opening) + len(pieces.turn_change)
        self.longest = around + room + max_new_tokens + 1

    def _random(self) -> float:
        return float(torch.rand((), generator=self.generator))

    def start(self) -> _Slot:
        """Return a new slot; its cache holds the template's opening except the last token."""
        opening = self.pieces.opening
        steering: Sequence[int] = []
        if self.openings and self._random() < 0.5:
            steering = self.openings[int(self._random() * len(self.openings))]
        # Half of the user turns have up to 48 tokens, 35 % up to 96, 15 % up to 192.
        draw = self._random()
        limit = 48 if draw < 0.5 else 96 if draw < 0.85 else 192
        return _Slot(
            tokens=[*opening],
            forced=[*steering],
            prompt_limit=len(opening) + min(max(limit, len(steering) + 8), self.room),
            temperature=0.6 + 0.4 * self._random(),
            position=len(opening) - 1,
        )

    def advance(self, slot: _Slot, predicted: int) -> bool:
        """Advance a slot by one token; return whether its answer is finished."""
        slot.position += 1
        if not slot.forced and not slot.answering and self._ends_prompt(slot, predicted):
            slot.forced = [*self.pieces.turn_change]
            slot.turning = True
            if not slot.forced and predicted in self.stop_ids:
                slot.prompt_length = len(slot.tokens)
        if slot.forced:
            slot.tokens.append(slot.forced.pop(0))
        else:
            slot.tokens.append(predicted)
        if slot.turning and not slot.forced and not slot.answering:
            slot.prompt_length = len(slot.tokens)
            slot.temperature = 0.0 if self._random() < 2 / 3 else 0.7
            slot.processors = self.settings.processors(slot.tokens)
            return False
        return slot.answering and (
            predicted in self.stop_ids
            or len(slot.tokens) - slot.prompt_length >= self.max_new_tokens
        )

    def _ends_prompt(self, slot: _Slot, predicted: int) -> bool:
        return predicted in self.stop_ids or len(slot.tokens) + 1 >= slot.prompt_limit


def choose_tokens(
    logits: torch.Tensor, temperatures: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Choose the next token of every row: the argmax at temperature 0, else a draw.

    Args:
        logits: (B, V) float.
        temperatures: (B,) float32, >= 0.
        generator: source of the draws.

    Returns:
        (B,) int64.
    """
    chosen = logits.argmax(-1)
    sampled = (temperatures > 0).nonzero().squeeze(-1)
    if len(sampled):
        scaled = logits[sampled].float() / temperatures[sampled, None]
        cumulative = torch.softmax(scaled, -1).cumsum(-1)
        uniform = torch.rand(len(sampled), 1, generator=generator) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, uniform).squeeze(-1)
        chosen[sampled] = drawn.clamp_max(logits.shape[-1] - 1)
    return chosen


def _generate_rows(
    engine: SlotEngine, writer: _Writer, slots: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (prompt ids, response ids) endlessly, in the order in which answers finish."""
    states = [writer.start() for _ in range(slots)]
    for index in range(slots):
        engine.restart(index)
    while True:
        tokens = torch.tensor([state.tokens[-1] for state in states])
        positions = torch.tensor([state.position for state in states], dtype=torch.int32)
        logits = engine.step(tokens, positions)
        for index, state in enumerate(states):
            if state.processors:
                logits[index] = process_row(state.processors, state.tokens, logits[index])
        temperatures = torch.tensor([state.temperature for state in states])
        chosen = choose_tokens(logits, temperatures, writer.generator).tolist()
        for index, (state, predicted) in enumerate(zip(states, chosen, strict=True)):
            if writer.advance(state, predicted):
                yield state.tokens[: state.prompt_length], state.tokens[state.prompt_length :]
                states[index] = writer.start()
                engine.restart(index)


def distill(
    target: str | Path,
    output: str | Path,
    *,
    response_tokens: int,
    slots: int = 96,
    max_new_tokens: int = 256,
    seed: int = 0,
    dtype: str = "auto",
    openings: Sequence[str] = DEFAULT_OPENINGS,
    feature_layers: Sequence[int] | None = None,
    progress: Callable[[DistillProgress], None] | None = None,
) -> DistillProgress:
    """Let the target write training data for its own draft head.

    Each row is one JSON line ``{"p": prompt ids, "r": response ids}``. The prompt is the chat
    template up to the answer, with a user turn that the target sampled itself (half of them after
    one of `openings`); the response is greedy for two thirds of the rows and drawn at temperature
    0.7 for the rest, and ends with a stop token of the target unless it reaches `max_new_tokens`.
    The logits processors of the target's generation config are applied to the response.

    The same call resumes an interrupted run. A base model, whose tokenizer has no chat template,
    writes plain texts: the prompt is the beginning, the response the continuation.

    Args:
        target: folder of the target model, with its tokenizer. A model that the packed path cannot
            run is run by transformers' modules, with a warning.
        output: JSONL file to append to.
        response_tokens: response tokens that the file holds in the end, at least.
        slots: sequences that are decoded side by side.
        max_new_tokens: longest response, in tokens.
        seed: seed of all draws; a resumed run draws from a stream of its own.
        dtype: "float32", "bfloat16", or "auto": bfloat16 on the packed path if the CPU supports it.
        openings: texts with which half of the user turns begin; empty for none.
        feature_layers: of the head to be trained; only checked, before hours of decoding.
        progress: called after every row.

    Returns:
        What the file holds now.

    Raises:
        ValueError: an argument out of its range, a chat template that alters the user's text, a
            file that is not such JSONL, or a target with stop rules beyond tokens and length.
        AlreadyLockedError: another process appends to `output`.
    """
    limits = _Limits(response_tokens, slots, max_new_tokens)
    config = read_target_config(target)
    if feature_layers is not None:
        checked_feature_layers(feature_layers, config.num_hidden_layers)
    tokenizer = AutoTokenizer.from_pretrained(target)
    pieces = prompt_pieces(tokenizer)
    room = _prompt_room(pieces, config.max_position_embeddings, max_new_tokens)

    def start() -> tuple[TargetModel, _Writer]:
        model = load_slot_target(target, dtype)
        return model, _Writer(pieces, tokenizer, max_new_tokens, openings, room, model)

    with exclusive_file(output):
        return _append_rows(Path(output), start, limits, seed, progress)


@dataclass(frozen=True)
class _Limits:
    """How much is written, and in how many slots."""

    response_tokens: int
    slots: int
    max_new_tokens: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


def _prompt_room(pieces: PromptPieces, max_positions: int, max_new_tokens: int) -> int:
    """Return the tokens that a user turn may have.

    Raises:
        ValueError: the target's context has no room for a prompt.
    """
    around = len(pieces.opening) + len(pieces.turn_change)
    room = max_positions - around - max_new_tokens - 1
    if room < _LEAST_ROOM:
        most = max_new_tokens + room - _LEAST_ROOM
        raise ValueError(
            f"max_new_tokens must be at most {most}, so that a prompt fits the target's context of "
            f"{max_positions}, got {max_new_tokens}"
        )
    return min(room, _MOST_ROOM)


def _generation_settings(target: TargetModel, max_new_tokens: int) -> GenerationSettings:
    settings = GenerationSettings.read(
        target.config,
        target.generation_config,
        target.device,
        max_new_tokens=max_new_tokens,
    )
    settings.check_ends_by_tokens()
    return settings


def _append_rows(
    output: Path,
    start: Callable[[], tuple[TargetModel, _Writer]],
    limits: _Limits,
    seed: int,
    progress: Callable[[DistillProgress], None] | None,
) -> DistillProgress:
    """Append rows until the file holds enough; load the target only if rows are missing."""
    written = recover(output)
    if written.response_tokens >= limits.response_tokens:
        return written
    target, writer = start()
    writer.generator.manual_seed(seed + 1_000_003 * written.rows)
    with torch.inference_mode():
        engine = SlotEngine(target, writer.pieces.opening[:-1], limits.slots, writer.longest)
        for prompt, response in _generate_rows(engine, writer, limits.slots):
            append_row(output, prompt, response)
            written.rows += 1
            written.prompt_tokens += len(prompt)
            written.response_tokens += len(response)
            if progress is not None:
                progress(written)
            if written.response_tokens >= limits.response_tokens:
                return written
    raise AssertionError("the stream of rows does not end by itself")
