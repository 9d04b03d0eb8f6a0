"""Record traces: decode prompts once, then replay the draft alone at every position."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from eaglerl.eagle3.decoder import SpeculativeDecoder
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.head.packed_draft import products_dtype
from eaglerl.eagle3.prompt_inputs import check_token_ids
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.files import exclusive_folder
from eaglerl.fingerprints import head_id, prompt_id, target_id
from eaglerl.traces.greedy_continuations import GreedyText, greedy_texts, slots_of
from eaglerl.traces.replay import DraftReplay, ReplayDtype
from eaglerl.traces.token_paths import find_path, future_tokens, look_up, pool_ranks
from eaglerl.traces.trace_index import FORMAT, INDEX_NAME, VERSION, read_index, write_index
from eaglerl.traces.trace_set import ABSENT, Trace, TraceSet, write_shard

_FIRST_LOG_PROBS = 8


@dataclass(frozen=True)
class Prompt:
    """A prompt to record.

    Attributes:
        token_ids: its tokens.
        domain: its source, by which results are grouped.
    """

    token_ids: tuple[int, ...]
    domain: str

    @property
    def id(self) -> str:
        """Hash of the token ids."""
        return prompt_id(self.token_ids)


@dataclass(frozen=True)
class RecordOptions:
    """What to record of every position.

    Attributes:
        top_ks: widths K of the trees.
        max_depth: largest depth D.
        max_new_tokens: longest continuation.
        lookup_tokens: number of tokens to look up.
        slots: number of prompts to decode side by side.

    Raises:
        ValueError: a value is out of range.
    """

    top_ks: tuple[int, ...] = (1, 2, 4, 8)
    max_depth: int = 7
    max_new_tokens: int = 128
    lookup_tokens: int = 12
    slots: int = 16

    def __post_init__(self) -> None:
        if not self.top_ks or sorted(set(self.top_ks)) != list(self.top_ks) or self.top_ks[0] < 1:
            raise ValueError(
                f"top_ks must be ascending, distinct and at least 1, got {list(self.top_ks)}"
            )
        for name, low, high in (
            ("max_depth", 0, 63),
            ("max_new_tokens", 2, None),
            ("lookup_tokens", 1, 255),
            ("slots", 1, None),
        ):
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                limit = "" if high is None else f" and at most {high}"
                raise ValueError(f"{name} must be at least {low}{limit}, got {value}")
        pool = self.top_ks[-1] + self.max_depth * self.top_ks[-1] ** 2
        if pool >= ABSENT:
            raise ValueError(
                f"top_ks and max_depth give a pool of {pool} candidates, more than {ABSENT - 1}"
            )

    @property
    def tail(self) -> int:
        """Number of tokens to decode past the end of a continuation."""
        return max(self.max_depth + 1, self.lookup_tokens)


class TraceBuilder:
    """The conversion of decoded texts into traces."""

    def __init__(self, head: Eagle3DraftHead, dtype: ReplayDtype, options: RecordOptions) -> None:
        """Pack a copy of the head.

        Args:
            head: the head, on the CPU, with an embedding table.
            dtype: precision of the live draft's matrix products.
            options: what to record.

        Raises:
            ValueError: a width exceeds the draft's vocabulary, or the head has no embedding table.
        """
        if options.top_ks[-1] > head.config.draft_vocab_size:
            raise ValueError(
                f"top_ks must be at most the draft's vocabulary of {head.config.draft_vocab_size}, "
                f"got {options.top_ks[-1]}"
            )
        self._replay = DraftReplay(head, dtype)
        self._options = options

    def build(self, text: GreedyText, domain: str) -> Trace:
        """Make the trace of a text with at least two new tokens."""
        options = self._options
        positions = text.new_tokens - 1
        prompt = len(text.prompt_ids)
        replay = self._replay.start(
            (*text.prompt_ids, *text.token_ids[:positions]),
            text.features[: prompt + positions - 1],
            prompt,
        )
        levels = options.max_depth + 1
        future = future_tokens(text.token_ids, positions, levels)
        match, accepted, tokens = look_up(text, positions, options.lookup_tokens)
        # As a path: a column for the root, and at least as many as there are levels.
        looked_up = torch.from_numpy(np.pad(tokens, ((0, 0), (1, levels)), constant_values=-1))
        ranks, paths, lookup_paths, scores = [], [], [], {}
        for top_k in options.top_ks:
            trees = replay.grow(top_k, options.max_depth)
            pool = torch.stack([tree.scores for tree in trees])[:, 1:].numpy()
            path = np.stack([find_path(*pair) for pair in zip(trees, future, strict=True)])
            ranks.append(pool_ranks(pool, path, top_k, options.max_depth))
            paths.append(path)
            pairs = zip(trees, looked_up[:, : levels + 1], strict=True)
            lookup_paths.append(np.stack([find_path(*pair) for pair in pairs]))
            scores[top_k] = pool.astype(np.float16)
        first = torch.log_softmax(replay.first_logits, dim=-1)
        best = first.topk(min(_FIRST_LOG_PROBS, first.shape[1])).values
        return Trace(
            domain=domain,
            prompt_id=prompt_id(text.prompt_ids),
            prompt_ids=np.array(text.prompt_ids, dtype=np.int32),
            continuation_ids=np.array(text.token_ids, dtype=np.int32),
            top_ks=options.top_ks,
            ranks=np.stack(ranks, axis=1),
            path=np.stack(paths, axis=1),
            scores=scores,
            first_log_probs=best.half().numpy(),
            features=replay.reduced.half().numpy(),
            lookup_match=match,
            lookup_accepted=accepted,
            lookup_path=np.stack(lookup_paths, axis=1),
            lookup_tokens=options.lookup_tokens,
        )


@dataclass(frozen=True)
class RecordProgress:
    """Progress of a recording.

    Attributes:
        prompts: number of prompts in the folder.
        positions: number of positions in the folder.
    """

    prompts: int
    positions: int


@dataclass(frozen=True)
class Recorded:
    """What one prompt gave.

    Attributes:
        prompt_id: see `prompt_id`.
        domain: domain of the prompt.
        new_tokens: number of tokens of its continuation.
        trace: its trace; None if there is nothing to draft.
    """

    prompt_id: str
    domain: str
    new_tokens: int
    trace: Trace | None


#: How the traces of prompts are made: they come in the order in which `Recorder.run` gives them.
RunPrompts = Callable[[Iterable[Prompt]], Generator[Recorded, None, None]]


class Recorder:
    """Decodes prompts and makes their traces.

    Attributes:
        header: content of the index without its shards.
        slots: number of prompts that are decoded side by side.
    """

    def __init__(self, decoder: SpeculativeDecoder, options: RecordOptions) -> None:
        """Set up.

        Args:
            decoder: target, head and precision of the draft's matrix products.
            options: what to record.

        Raises:
            ValueError: an option is out of range, the decoder has no draft head, or the target's
                texts end by other conditions than tokens and lengths.
        """
        self._settings = decoder.read_options(max_new_tokens=options.max_new_tokens)
        self._settings.check_ends_by_tokens()
        head, draft = decoder.draft_head, decoder.draft_runner
        if head is None or draft is None:
            raise ValueError("decoder must have a draft head to record, got one without")
        # The target's products may be bfloat16, the draft's may not.
        dtype = cast("ReplayDtype", products_dtype(draft))
        self._target = decoder.target
        self._options = options
        self._builder = TraceBuilder(head, dtype, options)
        self.header = _header(decoder.target, head, dtype, options)
        self.slots = slots_of(decoder.target, options.slots)

    def check(self, prompt: Prompt) -> None:
        """Check that a prompt can be recorded.

        Raises:
            ValueError: it has unknown tokens or is too long for the target.
        """
        target, count = self._target, len(prompt.token_ids)
        new_tokens = self._options.max_new_tokens + self._options.tail
        check_token_ids([list(prompt.token_ids)], target.vocab_size, target.max_positions)
        if count + new_tokens > target.max_positions:
            raise ValueError(
                f"a prompt of {count} tokens and {new_tokens} to decode exceed the target's "
                f"context of {target.max_positions}"
            )

    def run(self, prompts: Iterable[Prompt]) -> Generator[Recorded, None, None]:
        """Yield what prompts give, in the order in which their continuations are complete."""
        domains: list[str] = []

        def token_ids() -> Iterator[tuple[int, ...]]:
            for prompt in prompts:
                domains.append(prompt.domain)
                yield prompt.token_ids

        for text in greedy_texts(
            self._target,
            token_ids(),
            max_new_tokens=self._options.max_new_tokens,
            tail=self._options.tail,
            eos_token_ids=self._settings.eos_token_ids,
            slots=self._options.slots,
            settings=self._settings,
        ):
            domain = domains[text.index]
            trace = self._builder.build(text, domain) if text.new_tokens > 1 else None
            yield Recorded(prompt_id(text.prompt_ids), domain, text.new_tokens, trace)


def record(
    decoder: SpeculativeDecoder,
    prompts: Iterable[Prompt],
    folder: str | Path,
    *,
    options: RecordOptions | None = None,
    max_positions: int | None = None,
    progress: Callable[[RecordProgress], None] | None = None,
    run: Callable[[Recorder], RunPrompts] | None = None,
) -> TraceSet:
    """Record traces into a folder, one shard per prompt, or resume a recording.

    Files are written atomically, the index after the shard. A killed run therefore loses at most
    the prompts in progress, and the same call resumes it.

    Args:
        decoder: target, head and precision of the draft's matrix products.
        prompts: the prompts; those that the folder already holds are skipped.
        folder: output folder, created if necessary.
        options: what to record; a resumed recording must have the same options.
        max_positions: number of positions in the folder at which to stop.
        progress: called after every prompt.
        run: returns what makes the traces in place of `Recorder.run`, such as other machines.

    Returns:
        The traces of the folder.

    Raises:
        ValueError: an option is out of range; the folder holds traces of another target or head, or
            with other options; the decoder has no draft head; or the target's texts end by other
            conditions than tokens and lengths.
        AlreadyLockedError: another process is recording into the folder.
    """
    with exclusive_folder(folder):
        recorder = Recorder(decoder, options or RecordOptions())
        run_prompts = recorder.run if run is None else run(recorder)
        return _record(recorder, run_prompts, prompts, Path(folder), max_positions, progress)


def _record(
    recorder: Recorder,
    run_prompts: RunPrompts,
    prompts: Iterable[Prompt],
    folder: Path,
    max_positions: int | None,
    progress: Callable[[RecordProgress], None] | None,
) -> TraceSet:
    shards = _open_folder(folder, recorder.header)
    known = {str(shard["prompt_id"]) for shard in shards}
    held = sum(shard["positions"] for shard in shards)
    if max_positions is not None and held >= max_positions:
        return TraceSet(folder)
    # Closed at once when enough is recorded: what is still being decoded elsewhere is cancelled.
    with closing(run_prompts(_unseen(recorder, prompts, known))) as results:
        for result in results:
            shards.append(_write_one(result, folder))
            write_index(folder, recorder.header | {"shards": shards})
            held += shards[-1]["positions"]
            if progress is not None:
                progress(RecordProgress(len(shards), held))
            if max_positions is not None and held >= max_positions:
                break
    return TraceSet(folder)


def _header(
    target: TargetModel, head: Eagle3DraftHead, dtype: ReplayDtype, options: RecordOptions
) -> dict[str, object]:
    """Make the content of an index without its shards."""
    target_name, head_name = target_id(target), head_id(head)
    return {
        "format": FORMAT,
        "version": VERSION,
        "target_id": target_name,
        "head_id": head_name,
        "target_fingerprint": target_name.fingerprint,
        "head_fingerprint": head_name.fingerprint,
        "draft_dtype": dtype,
        "hidden_size": head.config.hidden_size,
        "top_ks": list(options.top_ks),
        "max_depth": options.max_depth,
        "max_new_tokens": options.max_new_tokens,
        "lookup_tokens": options.lookup_tokens,
    }


def _write_one(result: Recorded, folder: Path) -> dict[str, Any]:
    """Write a shard, unless there is nothing to draft, and return its entry in the index."""
    if result.trace is not None:
        write_shard(folder / f"{result.prompt_id}.safetensors", result.trace)
    return {
        "file": f"{result.prompt_id}.safetensors",
        "prompt_id": result.prompt_id,
        "domain": result.domain,
        "positions": result.new_tokens - 1,
    }


def _open_folder(folder: Path, header: dict[str, object]) -> list[dict[str, Any]]:
    """Return the shards of a folder; a new folder gets an index without shards."""
    if not (folder / INDEX_NAME).exists():
        write_index(folder, header | {"shards": []})
        return []
    index = read_index(folder)
    for name, value in header.items():
        # An index from before fingerprints existed is checked by the ids alone.
        unknown = name.endswith("_fingerprint") and index.get(name) is None
        if index.get(name) != value and not unknown:
            raise ValueError(
                f"{str(folder)!r} holds traces with {name} = {index.get(name)!r}, this run has "
                f"{value!r}: choose another folder"
            )
    return list(index["shards"])


def _unseen(recorder: Recorder, prompts: Iterable[Prompt], known: set[str]) -> Iterator[Prompt]:
    """Check the prompts, and yield those that are not `known`."""
    for prompt in prompts:
        recorder.check(prompt)
        name = prompt.id
        if name not in known:
            known.add(name)
            yield prompt
