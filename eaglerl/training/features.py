"""The target's features in shards on disk: extraction, which can be interrupted, and reading.

A shard is a safetensors file with the sequences of some rows one after another:

- ``token_ids`` (N,) int32;
- ``offsets`` (S + 1,) int64, where each sequence begins, and where the last ends;
- ``prompt_lengths`` (S,) int32, the response being the rest of the sequence;
- ``taps`` (N, 3k) fp16, inputs of the feature layers [low | mid | high];
- ``final_hidden`` (N, k) fp16, output of the target's final norm.

The last two are bfloat16 in a shard whose values exceed the range of fp16.

A shard's name is a hash of its rows. Rows that are added to the data later go into new shards;
existing shards are not computed again.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, ConfigDict
from safetensors import safe_open

from eaglerl.files import atomic_path, exclusive_folder
from eaglerl.json_file import Count, Items, JsonObject, Schema, read_json
from eaglerl.tensor_file import open_tensors, write_tensors
from eaglerl.training.batches import FeatureSequence, draft_row_count
from eaglerl.training.data import Row, is_held_out, split_rows
from eaglerl.training.feature_model import FeatureModel

INDEX_NAME = "index.json"
INDEX_FORMAT = 1
TRAIN, HELD_OUT = "train", "held_out"
SHARD_ROWS = 256
_MAX_INDEX_BYTES = 1 << 26
# Under safetensors' names.
_DTYPES = {
    "offsets": ("I64",),
    "prompt_lengths": ("I32",),
    "token_ids": ("I32",),
    # bfloat16 where values exceed the range of fp16.
    "taps": ("F16", "BF16"),
    "final_hidden": ("F16", "BF16"),
}

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Shard:
    """One shard, as the index describes it.

    Attributes:
        file: name within the folder.
        split: "train" or "held_out".
        tokens: number N of tokens.
        rows: the rows' digests, in the order of the sequences.
    """

    file: str
    split: str
    tokens: int
    rows: tuple[str, ...]


def _check_bare(name: str) -> str:
    if Path(name).name != name:
        raise ValueError(f"must be a bare name, got {name!r}")
    return name


class _TargetSchema(Schema):
    model_config = ConfigDict(extra="allow", allow_inf_nan=True)

    num_hidden_layers: Count


class _ShardSchema(Schema):
    file: Annotated[str, AfterValidator(_check_bare)]
    split: Literal["train", "held_out"]
    tokens: Count
    rows: Items[str]


class _IndexSchema(Schema):
    format: Literal[1]  # INDEX_FORMAT
    source: JsonObject
    shards: Items[_ShardSchema]


def extract_features(
    target: str | Path,
    rows: Sequence[Row],
    folder: str | Path,
    *,
    feature_layers: tuple[int, int, int] | None = None,
    dtype: torch.dtype = torch.float32,
    shard_rows: int = SHARD_ROWS,
    progress: Progress | None = None,
) -> list[Shard]:
    """Compute the features of all rows that the folder's shards do not hold yet.

    Args:
        target: folder of the target, fp32 or of any dtype that transformers converts.
        rows: the rows; training and held-out ones go into different shards.
        folder: folder of the shards, made if missing.
        feature_layers: the layers as indices into ``hidden_states``; None for EAGLE's rule.
        dtype: dtype of the target's matrix products.
        shard_rows: rows in a shard.
        progress: called with a sentence and the fraction done.

    Returns:
        The folder's shards that hold ``rows``.

    Raises:
        ValueError: the folder holds features of another target or of other layers.
        AlreadyLockedError: another process is computing features in the folder.
    """
    if shard_rows < 1:
        raise ValueError(f"shard_rows must be at least 1, got {shard_rows}")
    folder = Path(folder)
    source = _describe(target, feature_layers)
    with exclusive_folder(folder):
        shards = read_index(folder, source)
        known = {digest for shard in shards for digest in shard.rows}
        pending = [part for split in split_rows(rows) for part in _parts(split, known, shard_rows)]
        if pending:
            model = FeatureModel.from_pretrained(target, feature_layers, dtype=dtype)
        total, done = sum(len(row.token_ids) for part in pending for row in part), 0
        for part in pending:
            if progress is not None:
                progress(f"features of {total:,} tokens", done / total)
            shards.append(_write_shard(folder, part, model))
            _write_index(folder, source, shards)
            done += shards[-1].tokens
    wanted = {row.digest for row in rows}
    return [shard for shard in shards if not wanted.isdisjoint(shard.rows)]


def read_index(folder: str | Path, source: dict[str, Any] | None = None) -> list[Shard]:
    """Read the index of a folder.

    Args:
        folder: the folder; one without an index counts as empty.
        source: what the features must have been computed from; None accepts any.

    Raises:
        ValueError: the index has another format, or the features another source.
    """
    file = Path(folder) / INDEX_NAME
    if not os.path.lexists(file):
        return []
    index = read_json(file, _IndexSchema, "index of features", max_bytes=_MAX_INDEX_BYTES)
    if source is not None and index.source != source:
        raise ValueError(
            f"folder must be empty or hold features of {source}, but {file} says {index.source}"
        )
    return [Shard(**dict(shard)) for shard in index.shards]


class FeatureDataset:
    """The features of some rows, read from the shards on demand.

    Attributes:
        draft_rows: draft rows of each sequence.
    """

    def __init__(self, folder: str | Path, shards: Iterable[Shard], rows: Sequence[Row]) -> None:
        """Open the shards.

        Args:
            folder: folder of the shards.
            shards: where the rows are.
            rows: the rows, in the order of their indices, which do not depend on the shards.

        Raises:
            ValueError: a file or a row is missing.
        """
        places: dict[str, tuple[Any, int, int, int]] = {}
        for shard in shards:
            path = Path(folder) / shard.file
            if not path.is_file():
                raise ValueError(f"shards must exist, but there is no {path}")
            file, offsets, prompts = _open_shard(path, shard)
            for digest, ends, prompt in zip(shard.rows, pairwise(offsets), prompts, strict=True):
                places[digest] = (file, *ends, prompt)
        missing = sum(row.digest not in places for row in rows)
        if missing:
            raise ValueError(
                f"shards must hold all rows, but {missing} of {len(rows)} are missing in "
                f"{str(folder)!r}"
            )
        self._places = [places[row.digest] for row in rows]
        self.draft_rows = [draft_row_count(len(row.prompt), len(row.token_ids)) for row in rows]

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self._places)

    def __getitem__(self, index: int) -> FeatureSequence:
        """Read one sequence."""
        file, start, end, prompt = self._places[index]
        return FeatureSequence(
            token_ids=file.get_slice("token_ids")[start:end],
            prompt_length=prompt,
            features=file.get_slice("taps")[start:end],
            final_hidden=file.get_slice("final_hidden")[start:end],
        )


def _open_shard(path: Path, shard: Shard) -> tuple[Any, list[int], list[int]]:
    """Return a shard's open file, the offsets of its sequences, and their prompt lengths.

    Raises:
        ValueError: the file is not a shard, or its tensors do not fit the index.
    """
    where = f"the features {str(path)!r}"
    with open_tensors(path, "features") as opened:
        shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
        missing = sorted({*_DTYPES} - shapes.keys())
        if missing:
            raise ValueError(f"{where} lacks the tensor {missing[0]!r}")
        count, width = len(shard.rows), (shapes["final_hidden"] or [0])[-1]
        wanted = {
            "offsets": [count + 1],
            "prompt_lengths": [count],
            "token_ids": [shard.tokens],
            "taps": [shard.tokens, 3 * width],
            "final_hidden": [shard.tokens, width],
        }
        for name, shape in wanted.items():
            dtype = opened.get_slice(name).get_dtype()
            if shapes[name] != shape or dtype not in _DTYPES[name]:
                raise ValueError(
                    f"{name!r} of {where} must be {' or '.join(_DTYPES[name])} of shape {shape}, "
                    f"got {dtype} of {shapes[name]}"
                )
        offsets = opened.get_tensor("offsets").tolist()
        prompts = opened.get_tensor("prompt_lengths").tolist()
    lengths = [end - start for start, end in pairwise(offsets)]
    fits = all(0 < prompt < length for prompt, length in zip(prompts, lengths, strict=True))
    if offsets[0] != 0 or offsets[-1] != shard.tokens or not fits:
        raise ValueError(f"'offsets' and 'prompt_lengths' of {where} do not fit each other")
    return safe_open(path, framework="pt"), offsets, prompts


def _describe(target: str | Path, feature_layers: tuple[int, int, int] | None) -> dict[str, Any]:
    """Return what identifies the source of features: those of another are incompatible."""
    file = Path(target) / "config.json"
    config = read_json(file, _TargetSchema, "target's config", allow_nan=True)
    values = config.model_dump()
    keys = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
    layers = config.num_hidden_layers
    rule = (2, layers // 2, layers - 3)
    return {
        "target": {key: values.get(key) for key in keys},
        # None stands for EAGLE's rule, as in folders from before layers could be chosen.
        "feature_layers": None if feature_layers in (None, rule) else list(feature_layers),
    }


def _parts(rows: Sequence[Row], known: set[str], shard_rows: int) -> list[Sequence[Row]]:
    missing = [row for row in rows if row.digest not in known]
    return [missing[start : start + shard_rows] for start in range(0, len(missing), shard_rows)]


def _write_shard(folder: Path, rows: Sequence[Row], model: FeatureModel) -> Shard:
    digests = tuple(row.digest for row in rows)
    name = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
    features = model([row.token_ids for row in rows])
    lengths = torch.tensor([0, *(len(row.token_ids) for row in rows)])
    shard = Shard(
        file=f"{name}.safetensors",
        split=HELD_OUT if is_held_out(rows[0].prompt) else TRAIN,
        tokens=int(lengths.sum()),
        rows=digests,
    )
    tensors = {
        "token_ids": torch.tensor([i for row in rows for i in row.token_ids], dtype=torch.int32),
        "offsets": lengths.cumsum(0),
        "prompt_lengths": torch.tensor([len(row.prompt) for row in rows], dtype=torch.int32),
        "taps": _joined([item.features for item in features]),
        "final_hidden": _joined([item.final_hidden for item in features]),
    }
    write_tensors(folder / shard.file, tensors)
    return shard


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the rows of all parts; in bfloat16 if one of them is."""
    dtypes = {part.dtype for part in parts}
    return torch.cat([part if len(dtypes) == 1 else part.bfloat16() for part in parts])


def _write_index(folder: Path, source: dict[str, Any], shards: Sequence[Shard]) -> None:
    index = {
        "format": INDEX_FORMAT,
        "source": source,
        "shards": [asdict(shard) for shard in shards],
    }
    with atomic_path(folder / INDEX_NAME) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
