"""Loading of a target and its draft head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from eaglerl.eagle3.fit import check_fit
from eaglerl.eagle3.head.draft_config import Eagle3Config
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.head.feature_layer_check import check_layer_ids
from eaglerl.eagle3.target.make_target import TargetOptions, load_target
from eaglerl.eagle3.target.target_model import TargetModel


def load_pair(
    target: str | Path,
    draft: str | Path | None,
    *,
    feature_layers: Sequence[int] | None = None,
    **options: Unpack[TargetOptions],
) -> tuple[TargetModel, Eagle3DraftHead | None, PreTrainedTokenizerBase]:
    """Load a target, its head with an embedding table, and the target's tokenizer.

    Args:
        target: folder or hub name of the target.
        draft: folder of the draft head; None for the target alone, which then computes no
            features.
        feature_layers: see `SpeculativeDecoder.from_pretrained`.
        options: backend, dtype, device, precision, weights and kv_cache_dtype, see `load_target`.

    Raises:
        ValueError: a checkpoint breaks an invariant, or the two do not fit.
    """
    config = None
    if draft is not None:
        config = Eagle3Config.from_pretrained(draft, feature_layers=feature_layers)
    model = load_target(
        target,
        feature_layers=() if config is None else config.resolve_feature_layers,
        **options,
    )
    tokenizer = AutoTokenizer.from_pretrained(target)
    if draft is None or config is None:
        return model, None, tokenizer
    # Passed here, the table is checked as part of the head's checkpoint; `check_fit` would report
    # a wrong one as a target that does not fit.
    table = model.embed_tokens if config.tie_word_embeddings else None
    head = Eagle3DraftHead.from_pretrained(draft, config=config, embed_tokens=table)
    head = head.to(model.device)
    check_fit(model, head)
    if not head.has_embedding:
        head.set_embed_tokens(model.embedding)
    if feature_layers is None:
        check_layer_ids(draft, model, head, tokenizer)
    return model, head, tokenizer
