"""Short hashes that say which target and which head a file belongs to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from eaglerl.eagle3.draft import Eagle3DraftHead
from eaglerl.eagle3.generation_fields import text_options
from eaglerl.eagle3.target import TargetModel

_DIGITS = 16


def head_id(head: Eagle3DraftHead) -> str:
    """16 hexadecimal digits of SHA-256 over a head's parameters and draft vocabulary."""
    digest = hashlib.sha256()
    for name, tensor in sorted(head.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:_DIGITS]


def target_id(target: TargetModel) -> str:
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
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode())
    digest.update(_bytes(target.embed_tokens))
    return digest.hexdigest()[:_DIGITS]


def prompt_id(token_ids: Sequence[int]) -> str:
    """16 hexadecimal digits of SHA-256 over a prompt's ids as little-endian int64."""
    data = np.asarray(token_ids, dtype="<i8").tobytes()
    return hashlib.sha256(data).hexdigest()[:_DIGITS]


def split_of(prompt_id: str) -> Literal["train", "test"]:
    """The half that a prompt belongs to: "test" where the last bit of its `prompt_id` is set."""
    return "test" if int(prompt_id, 16) % 2 else "train"


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
