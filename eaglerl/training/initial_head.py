"""The head that training starts from: an untrained one of a target, or an existing one."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from eaglerl.eagle3.config import Eagle3Config
from eaglerl.eagle3.draft import Eagle3DraftHead
from eaglerl.eagle3.rope import read_rope_parameters
from eaglerl.training.data import Row, choose_draft_vocabulary
from eaglerl.training.train_options import TrainOptions
from eaglerl.training.unroll import check_trainable

INITIAL_NORM_WEIGHT = 0.25


def read_initial_head(target: str | Path, options: TrainOptions) -> Eagle3DraftHead | None:
    """Reads the head that ``options`` names.

    Args:
        target: Folder of the target model.
        options: Their ``initial_head``, and the sizes that it must have.

    Returns:
        The head in fp32, without the target's embedding table; None if ``options`` name none.

    Raises:
        ValueError: The head is broken, is of a kind that is not trained, is another target's, or
            has other sizes than the options say.
    """
    path = options.initial_head
    if path is None:
        return None
    head = Eagle3DraftHead.from_pretrained(path)
    model = AutoConfig.from_pretrained(target)
    head.config = head.config.without_default_layers(model.num_hidden_layers)
    config = head.config
    check_trainable(config)
    untold = config.replace(feature_layers=None)
    wanted = {
        "feature_hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        # Those that features are extracted from.
        "feature_layers": untold.resolve_feature_layers(model.num_hidden_layers),
        "draft_vocab_size": options.draft_vocab_size,
        "intermediate_size": options.intermediate_size or config.intermediate_size,
    }
    layers = config.resolve_feature_layers(model.num_hidden_layers)
    got = {**{name: getattr(config, name) for name in wanted}, "feature_layers": layers}
    for name, value in wanted.items():
        if got[name] != value:
            origin = "as the options say" if hasattr(options, name) else "to fit the target"
            raise ValueError(
                f"initial_head must have {name} {value}, {origin}, but {path} has {got[name]}"
            )
    return head


def make_head(
    target: str | Path,
    rows: Sequence[Row],
    options: TrainOptions,
    initial: Eagle3DraftHead | None = None,
) -> tuple[Eagle3DraftHead, torch.Tensor]:
    """Makes the head that training starts from.

    An untrained head's output layer starts as the target's rows of the draft's vocabulary, with the
    final norm's weight at 0.25: as large as the target's own, their logits would be far too sure of
    a draft that knows nothing yet.

    Args:
        target: Folder of the target model.
        rows: Training rows, which the draft's vocabulary is chosen from.
        options: Sizes and seed.
        initial: What `read_initial_head` returned. If it is a head, that one is trained further,
            with its own vocabulary.

    Returns:
        The head in fp32, and the target's output layer (V, k).
    """
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    embeddings = model.get_input_embeddings().weight.detach()
    lm_head = model.get_output_embeddings().weight.detach()
    if initial is not None:
        if initial.embed_tokens is None:
            initial.set_embed_tokens(embeddings)
        return initial, lm_head
    stop_ids = model.generation_config.eos_token_id
    config = _head_config(model, options)
    torch.manual_seed(options.seed)
    head = Eagle3DraftHead(config, embed_tokens=embeddings)
    if config.prunes_vocabulary:
        required = stop_ids if isinstance(stop_ids, list) else [stop_ids]
        required = [token for token in required if token is not None]
        head.set_draft_vocabulary(
            choose_draft_vocabulary(rows, config.draft_vocab_size, config.vocab_size, required)
        )
    kept = head.draft_to_target
    with torch.no_grad():
        head.lm_head.weight.copy_(lm_head if kept is None else lm_head[kept])
        head.norm.weight.fill_(INITIAL_NORM_WEIGHT)
    return head, lm_head


def _head_config(model: PreTrainedModel, options: TrainOptions) -> Eagle3Config:
    target = model.config
    heads = target.num_attention_heads
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    config = Eagle3Config(
        hidden_size=target.hidden_size,
        intermediate_size=options.intermediate_size or target.intermediate_size,
        num_attention_heads=heads,
        num_key_value_heads=getattr(target, "num_key_value_heads", None) or heads,
        head_dim=getattr(target, "head_dim", None) or target.hidden_size // heads,
        vocab_size=len(model.get_output_embeddings().weight),
        draft_vocab_size=options.draft_vocab_size,
        max_position_embeddings=target.max_position_embeddings,
        rms_norm_eps=target.rms_norm_eps,
        rope_parameters=read_rope_parameters(target.to_dict()),
        fc_norm=True,
        token_ids={
            key: getattr(target, key) for key in tokens if getattr(target, key, None) is not None
        },
    )
    config.resolve_feature_layers(target.num_hidden_layers)
    return config
