"""Short hashes of a target and of a head, by which files say which models they belong to."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from eaglerl.eagle3.generation_config.generation_fields import text_options
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.layers.embedding import EmbeddingSource
from eaglerl.eagle3.target.target_model import TargetModel

_DIGITS = 16
# Number of embedding entries whose signs are kept, and the share of them that may differ: 4-bit
# quantisation flips about 0.06 of the signs, and of another model half of them differ.
_ENTRIES = 512
_MOST_FLIPPED = 0.2
# Rows of the table that are expanded at a time.
_ROWS = 1024


class ModelId(str):
    """The id of a target or a head, with a fingerprint that survives a change of precision.

    Attributes:
        fingerprint: for a head, a hash of its shapes and of the signs of its weights, which
            rounding does not change. For a target, a hash of its sizes, and the signs of 512
            entries of its embedding table, few of which quantisation changes. None if unknown.
    """

    fingerprint: str | None

    def __new__(cls, text: str, fingerprint: str | None = None) -> ModelId:
        """Make an id that equals its text."""
        made = super().__new__(cls, text)
        made.fingerprint = fingerprint
        return made

    def __reduce__(self) -> tuple[type[ModelId], tuple[str, str | None]]:
        """Return how a copy or a pickle is made."""
        return ModelId, (str(self), self.fingerprint)


def head_id(head: Eagle3DraftHead) -> ModelId:
    """Return 16 hexadecimal digits of SHA-256 over a head's parameters and draft vocabulary."""
    digest, signs = hashlib.sha256(), hashlib.sha256()
    for name, tensor in sorted(head.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_bytes(tensor))
        signs.update(f"{name} {tuple(tensor.shape)}".encode())
        signs.update(_signs(tensor) if tensor.is_floating_point() else _bytes(tensor))
    return ModelId(digest.hexdigest()[:_DIGITS], signs.hexdigest()[:_DIGITS])


def target_id(target: TargetModel) -> ModelId:
    """Return 16 hexadecimal digits of SHA-256 over a target's embedding table and sizes.

    The table stands for the other weights, since no two trained models share it. The generation
    config counts as far as it changes the logits, because it then changes the text.
    """
    shape: dict[str, object] = {
        "model_type": target.config.model_type,
        "num_layers": target.num_layers,
        "hidden_size": target.hidden_size,
        "vocab_size": target.vocab_size,
        "feature_layers": list(target.feature_layers),
    }
    # Added only if not empty, so that the ids of other targets stay as they were.
    options = text_options(target.generation_config)
    if options:
        shape["generation"] = options
    told = json.dumps(shape, sort_keys=True, default=str).encode()
    digest = hashlib.sha256(told)
    table = target.embedding
    for begin in range(0, table.shape[0], _ROWS):
        digest.update(_bytes(_rows(table, torch.arange(begin, min(begin + _ROWS, table.shape[0])))))
    some = torch.randint(
        table.shape[0] * table.shape[1], (_ENTRIES,), generator=torch.Generator().manual_seed(0)
    )
    entries = _rows(table, some // table.shape[1]).gather(1, some[:, None] % table.shape[1])
    signs = _signs(entries)
    if target.weights != "stored":
        # Formats of 4 and 8 bits share the table's.
        digest.update(target.weights.encode())
    fingerprint = f"{hashlib.sha256(told).hexdigest()[:_DIGITS]}-{signs.hex()}"
    return ModelId(digest.hexdigest()[:_DIGITS], fingerprint)


def is_same_model(known: str | None, wanted: str | None, name: str, where: str) -> bool:
    """Return whether two ids mean the same model; another precision counts, with a warning.

    Args:
        known: the id in a file, a `ModelId` if the file has a fingerprint, too; None for any model.
        wanted: the id of the loaded model; None for any model.
        name: name of the id, for the warning.
        where: the file, for the warning.
    """
    if known is None or wanted is None or known == wanted:
        return True
    one, other = (getattr(each, "fingerprint", None) for each in (known, wanted))
    if one is None or other is None or not _are_alike(one, other):
        return False
    warnings.warn(
        f"{where} was made for this model at another precision, or hardly trained further ({name} "
        f"{known}, here {wanted}): what it has learned may fit a little less",
        stacklevel=3,
    )
    return True


def _are_alike(one: str, other: str) -> bool:
    """Return whether two fingerprints differ by no more than quantisation explains."""
    shapes, signs = zip(*(text.partition("-")[::2] for text in (one, other)), strict=True)
    if shapes[0] != shapes[1] or not all(signs):
        return one == other
    try:
        bits = [np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8)) for text in signs]
    except ValueError:
        # Not hexadecimal: somebody has edited the file.
        return False
    return len(bits[0]) == len(bits[1]) and float(np.mean(bits[0] != bits[1])) <= _MOST_FLIPPED


def prompt_id(token_ids: Sequence[int]) -> str:
    """Return 16 hexadecimal digits of SHA-256 over a prompt's ids as little-endian int64."""
    data = np.asarray(token_ids, dtype="<i8").tobytes()
    return hashlib.sha256(data).hexdigest()[:_DIGITS]


def split_of(prompt_id: str) -> Literal["train", "test"]:
    """Return a prompt's half: "test" if the last bit of its `prompt_id` is set."""
    return "test" if int(prompt_id, 16) % 2 else "train"


def _rows(table: torch.Tensor | EmbeddingSource, ids: torch.Tensor) -> torch.Tensor:
    """Return rows of a table on the CPU, in its own dtype."""
    if isinstance(table, EmbeddingSource):
        return table.rows(ids)
    return table[ids.to(table.device)].cpu()


def _signs(tensor: torch.Tensor) -> bytes:
    return np.packbits(torch.signbit(tensor.detach()).flatten().cpu().numpy()).tobytes()


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
