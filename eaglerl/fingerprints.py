"""Short hashes that say which target and which head a file belongs to."""

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
from eaglerl.eagle3.target.target_model import TargetModel

_DIGITS = 16
# Entries of an embedding table whose signs are kept, and the share of them that may differ: 4-bit
# quantisation changes about 0.06, another model half.
_ENTRIES = 512
_MOST_FLIPPED = 0.2


class ModelId(str):
    """Id of a target or a head, with what is left of it at another precision.

    Attributes:
        fingerprint: of a head, a hash of its shape and of the signs of its weights, none of which
            rounding changes; of a target, a hash of its shape and the signs of some entries of its
            embedding table, few of which quantisation changes. None where it is not known.
    """

    fingerprint: str | None

    def __new__(cls, text: str, fingerprint: str | None = None) -> ModelId:
        """An id that equals its text."""
        made = super().__new__(cls, text)
        made.fingerprint = fingerprint
        return made

    def __getnewargs__(self) -> tuple[str, str | None]:
        """What a copy is made of."""
        return str(self), self.fingerprint


def head_id(head: Eagle3DraftHead) -> ModelId:
    """16 hexadecimal digits of SHA-256 over a head's parameters and draft vocabulary."""
    digest, signs = hashlib.sha256(), hashlib.sha256()
    for name, tensor in sorted(head.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_bytes(tensor))
        signs.update(f"{name} {tuple(tensor.shape)}".encode())
        signs.update(_signs(tensor) if tensor.is_floating_point() else _bytes(tensor))
    return ModelId(digest.hexdigest()[:_DIGITS], signs.hexdigest()[:_DIGITS])


def target_id(target: TargetModel) -> ModelId:
    """16 hexadecimal digits of SHA-256 over a target's embedding table and what shapes it.

    The table stands for the rest of the weights: no two trained models share it. What the target's
    generation config makes of its logits belongs to what it writes, and so to its name.
    """
    shape = {
        "model_type": target.config.model_type,
        "num_layers": target.num_layers,
        "hidden_size": target.hidden_size,
        "vocab_size": target.vocab_size,
        "feature_layers": list(target.feature_layers),
    }
    # Only where there is something, so that other targets keep the names that they have.
    options = text_options(target.generation_config)
    if options:
        shape["generation"] = options
    told = json.dumps(shape, sort_keys=True, default=str).encode()
    digest = hashlib.sha256(told)
    digest.update(_bytes(target.embed_tokens))
    some = torch.randint(
        target.embed_tokens.numel(), (_ENTRIES,), generator=torch.Generator().manual_seed(0)
    )
    signs = _signs(target.embed_tokens.flatten()[some.to(target.embed_tokens.device)])
    fingerprint = f"{hashlib.sha256(told).hexdigest()[:_DIGITS]}-{signs.hex()}"
    return ModelId(digest.hexdigest()[:_DIGITS], fingerprint)


def is_same_model(known: str | None, wanted: str | None, name: str, where: str) -> bool:
    """Whether two ids are of one model; one at another precision counts, with a warning.

    Args:
        known: what a file says, a `ModelId` where it tells a fingerprint; None for any.
        wanted: of the model at hand; None for any.
        name: of the id, for the warning.
        where: whose file it is, for the warning.
    """
    if known is None or wanted is None or known == wanted:
        return True
    fingerprints = [getattr(each, "fingerprint", None) for each in (known, wanted)]
    if None in fingerprints or not _are_alike(*fingerprints):
        return False
    warnings.warn(
        f"{where} was made for this model at another precision, or hardly trained further ({name} "
        f"{known}, here {wanted}): what it has learned may fit a little less",
        stacklevel=3,
    )
    return True


def _are_alike(one: str, other: str) -> bool:
    """Whether two fingerprints differ by no more than quantisation explains."""
    shapes, signs = zip(*(text.partition("-")[::2] for text in (one, other)), strict=True)
    if shapes[0] != shapes[1] or not all(signs):
        return one == other
    try:
        bits = [np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8)) for text in signs]
    except ValueError:
        # Of a file that somebody has changed.
        return False
    return len(bits[0]) == len(bits[1]) and float(np.mean(bits[0] != bits[1])) <= _MOST_FLIPPED


def prompt_id(token_ids: Sequence[int]) -> str:
    """16 hexadecimal digits of SHA-256 over a prompt's ids as little-endian int64."""
    data = np.asarray(token_ids, dtype="<i8").tobytes()
    return hashlib.sha256(data).hexdigest()[:_DIGITS]


def split_of(prompt_id: str) -> Literal["train", "test"]:
    """The half that a prompt belongs to: "test" where the last bit of its `prompt_id` is set."""
    return "test" if int(prompt_id, 16) % 2 else "train"


def _signs(tensor: torch.Tensor) -> bytes:
    return np.packbits(torch.signbit(tensor.detach()).flatten().cpu().numpy()).tobytes()


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
