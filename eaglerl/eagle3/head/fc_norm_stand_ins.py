"""Heads without ``fc_norm`` that compute nearly the same, for engines that do not have it.

Each of the three norms divides its feature by the feature's root mean square over the row, and
multiplies by its weights. Over a text the root mean square varies little: for SmolLM2-135M by 19,
12 and 9 %, the first token aside. So its usual value stands in for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from eaglerl.eagle3.head.draft_config import Eagle3Config
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.target.target_model import TargetModel


@torch.inference_mode()
def feature_rms(target: TargetModel, token_ids: Sequence[int]) -> torch.Tensor:
    """Return the root mean square of every feature of a text.

    The first token's are left out: they are up to two hundred times as large as the others'.

    Args:
        target: the target, with the head's feature layers.
        token_ids: the text, at least two tokens; what exceeds the target's context is left out.

    Returns:
        (n - 1, 3) float64.
    """
    ids = list(token_ids)[: target.max_positions]
    cache = target.new_cache(len(ids))
    output = target.forward(RowBatch.causal(ids, 0), cache, "none")
    return output.features[1:].double().cpu().unflatten(1, (3, -1)).square().mean(-1).sqrt()


def join_fc_norm(head: Eagle3DraftHead, rms: torch.Tensor) -> Eagle3DraftHead:
    """Return a head with one norm over the three features (``norm_before_fc``) in place of three.

    Args:
        head: a head with ``fc_norm``.
        rms: (n, 3) root mean squares of its features, see `feature_rms`.
    """
    joint = rms.square().mean(1, keepdim=True).sqrt()
    state = _other_tensors(head)
    state["input_norm.weight"] = _norm_weights(head) * _columns(head, _scales(rms / joint))
    return with_config(head, head.config.replace(fc_norm=False, norm_before_fc=True), state)


def fold_fc_norm(head: Eagle3DraftHead, rms: torch.Tensor) -> Eagle3DraftHead:
    """Return a head without norms before ``fc``, whose weights hold their usual factors.

    Args:
        head: a head with ``fc_norm``.
        rms: (n, 3) root mean squares of its features, see `feature_rms`.
    """
    state = _other_tensors(head)
    factors = _norm_weights(head) * _columns(head, _scales(rms))
    state["fc.weight"] = state["fc.weight"] * factors.to(state["fc.weight"])
    return with_config(head, head.config.replace(fc_norm=False), state)


def _scales(sizes: torch.Tensor) -> torch.Tensor:
    """Return for each column of ``sizes`` (n, 3) the a that minimises ``(1 - a * size) ** 2``."""
    return sizes.mean(0) / sizes.square().mean(0)


def _columns(head: Eagle3DraftHead, scales: torch.Tensor) -> torch.Tensor:
    """Return the three ``scales`` as one factor for each of the 3k columns of fc."""
    repeated = scales.repeat_interleave(head.config.feature_hidden_size)
    return repeated.to(head.fc.weight)


def _norm_weights(head: Eagle3DraftHead) -> torch.Tensor:
    if head.fc_norm is None:
        raise ValueError("head must have fc_norm, got one without")
    return torch.cat([norm.get_parameter("weight").detach() for norm in head.fc_norm])


def _other_tensors(head: Eagle3DraftHead) -> dict[str, torch.Tensor]:
    return {
        key: tensor for key, tensor in head.state_dict().items() if not key.startswith("fc_norm.")
    }


def with_config(
    head: Eagle3DraftHead, config: Eagle3Config, state: Mapping[str, torch.Tensor]
) -> Eagle3DraftHead:
    """Return a head with another configuration and other tensors, which are not copied.

    Args:
        head: whose embedding table it takes, if that is its own.
        config: its configuration.
        state: its tensors, without the embedding table.
    """
    with torch.device("meta"):
        other = Eagle3DraftHead(config)
    other.load_state_dict(state, strict=True, assign=True)
    if head.owns_embedding and head.embed_tokens is not None:
        other.set_embed_tokens(head.embed_tokens)
        other.owns_embedding = True
    return other.eval()
