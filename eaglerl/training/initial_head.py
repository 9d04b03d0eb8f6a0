"""The head that training starts from: an untrained one of a target, or an existing one."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from eaglerl.eagle3.head.draft_config import Eagle3Config
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.layers.rope import DEFAULT_ROPE_THETA, read_rope_parameters
from eaglerl.eagle3.target.target_files import load_transformers_model, read_target_config
from eaglerl.eagle3.target.target_model import checked_feature_layers, default_feature_layers
from eaglerl.training.data import Row, choose_draft_vocabulary
from eaglerl.training.train_options import TrainOptions
from eaglerl.training.unroll import check_trainable

INITIAL_NORM_WEIGHT = 0.25
_DEFAULT_EPS = 1e-6
# Relative error: rounding in fp32 stays below it, a cap or a bias exceeds it.
_LINEAR_ERROR = 1e-3


def read_initial_head(target: str | Path, options: TrainOptions) -> Eagle3DraftHead | None:
    """Read the head that ``options`` names.

    Args:
        target: folder of the target model.
        options: name the head in ``initial_head``, and the sizes that it must have.

    Returns:
        The head in fp32, without the target's embedding table; None if ``options`` name none.

    Raises:
        ValueError: the head is broken, is of a kind that is not trained, is another target's, or
            has other sizes than the options say.
    """
    path = options.initial_head
    if path is None:
        return None
    head = Eagle3DraftHead.from_pretrained(path)
    model = read_target_config(target)
    head.config = head.config.without_default_layers(model.num_hidden_layers)
    config = head.config
    check_trainable(config)
    layers = config.resolve_feature_layers(model.num_hidden_layers)
    wanted = {
        "feature_hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "feature_layers": options.feature_layers or layers,
        "draft_vocab_size": options.draft_vocab_size,
        "intermediate_size": options.intermediate_size or config.intermediate_size,
    }
    got = {**{name: getattr(config, name) for name in wanted}, "feature_layers": layers}
    for name, value in wanted.items():
        if got[name] != value:
            origin = "as the options say" if hasattr(options, name) else "to fit the target"
            raise ValueError(
                f"initial_head must have {name} {value}, {origin}, but {path} has {got[name]}"
            )
    return head


def choose_feature_layers(
    target: str | Path, options: TrainOptions, initial: Eagle3DraftHead | None
) -> tuple[int, int, int]:
    """Return the feature layers of a head.

    Args:
        target: folder of the target model.
        options: their ``feature_layers`` take precedence.
        initial: what `read_initial_head` returned; its layers come second, EAGLE's rule last.

    Raises:
        ValueError: the layers do not fit the target, or it is so shallow that EAGLE's rule gives
            no three.
    """
    layers = read_target_config(target).num_hidden_layers
    if options.feature_layers is not None:
        low, mid, high = checked_feature_layers(options.feature_layers, layers)
        return low, mid, high
    if initial is not None:
        return initial.config.resolve_feature_layers(layers)
    try:
        low, mid, high = default_feature_layers(layers)
    except ValueError as error:
        raise ValueError(
            f"EAGLE's rule (2, N / 2, N - 3) gives no three layers of a target with {layers}: name "
            f"them with feature_layers (--feature-layers), such as {_some_layers(layers)}"
        ) from error
    return low, mid, high


def _some_layers(layers: int) -> str:
    if layers < 3:
        return "those of a target with three layers or more"
    return f"{0},{layers // 2},{layers - 1}"


def make_head(
    target: str | Path,
    rows: Sequence[Row],
    options: TrainOptions,
    initial: Eagle3DraftHead | None = None,
) -> tuple[Eagle3DraftHead, torch.Tensor]:
    """Make the head that training starts from.

    An untrained head's output layer starts as the target's rows of the draft's vocabulary, and its
    final norm's weight at 0.25: with weights as large as the target's, the logits of an untrained
    head would be far too confident.

    Args:
        target: folder of the target model.
        rows: training rows, which the draft's vocabulary is chosen from.
        options: sizes and seed.
        initial: what `read_initial_head` returned. A head is trained further, with its own
            vocabulary.

    Returns:
        The head in fp32, and the target's output layer (V, k), scaled as the target scales its
        logits.
    """
    model = load_transformers_model(target, torch.float32)
    # A module's attribute may be a tensor or a module.
    embeddings = cast(torch.Tensor, model.get_input_embeddings().weight).detach()
    lm_head = model.get_output_embeddings().weight.detach() * logit_scale(model)
    if initial is not None:
        if initial.embed_tokens is None:
            initial.set_embed_tokens(embeddings)
        return initial, lm_head
    stop_ids = model.generation_config.eos_token_id
    config = _head_config(model, options, choose_feature_layers(target, options, None))
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


@torch.inference_mode()
def logit_scale(model: PreTrainedModel) -> float:
    """Return the factor between a model's output layer and its logits, 1 for most models.

    It is measured on 16 tokens, since every family names it differently in its config. If logits
    are changed in another way, such as by a cap, a warning says that the head is trained on the
    logits before that, which order the tokens in the same way.
    """
    ids = torch.arange(16)[None] * 7919 % model.config.vocab_size
    output = model(ids, output_hidden_states=True)
    plain = output.hidden_states[-1].float() @ model.get_output_embeddings().weight.float().T
    logits = output.logits.float()
    scale = float((logits * plain).sum() / (plain * plain).sum().clamp_min(1e-30))
    error = float((logits - scale * plain).norm() / logits.norm().clamp_min(1e-30))
    if error > _LINEAR_ERROR:
        warnings.warn(
            "the target changes its logits after the output layer by more than a factor; the head "
            "is trained on the logits before that change",
            stacklevel=2,
        )
        return 1.0
    return 1.0 if abs(scale - 1) < _LINEAR_ERROR else scale


def _head_rope(target: PreTrainedConfig) -> dict[str, Any]:
    """Return the RoPE of a new head: the target's, or of several that of its full attention.

    If heads do not support its type, or the target has none, it is plain RoPE with the same base:
    a new head can learn with either.
    """
    parameters = getattr(target, "rope_parameters", None) or {}
    if "rope_type" not in parameters and "rope_theta" not in parameters:
        kinds = [kind for kind in parameters.values() if isinstance(kind, dict)]
        parameters = parameters.get("full_attention") or (kinds[0] if kinds else {})
    try:
        return read_rope_parameters({"rope_parameters": parameters})
    except ValueError:
        theta = parameters.get("rope_theta") or DEFAULT_ROPE_THETA
        return {"rope_type": "default", "rope_theta": float(theta)}


def _head_config(
    model: PreTrainedModel, options: TrainOptions, feature_layers: tuple[int, int, int]
) -> Eagle3Config:
    target = model.config
    # Some families have a width for each layer, or none.
    width = getattr(target, "intermediate_size", None)
    width = width if isinstance(width, int) else 4 * target.hidden_size
    heads = target.num_attention_heads
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    config = Eagle3Config(
        hidden_size=target.hidden_size,
        intermediate_size=options.intermediate_size or width,
        num_attention_heads=heads,
        num_key_value_heads=getattr(target, "num_key_value_heads", None) or heads,
        head_dim=getattr(target, "head_dim", None) or target.hidden_size // heads,
        vocab_size=len(model.get_output_embeddings().weight),
        draft_vocab_size=options.draft_vocab_size,
        max_position_embeddings=target.max_position_embeddings,
        rms_norm_eps=float(getattr(target, "rms_norm_eps", None) or _DEFAULT_EPS),
        rope_parameters=_head_rope(target),
        fc_norm=True,
        feature_layers=feature_layers,
        token_ids={
            key: getattr(target, key) for key in tokens if getattr(target, key, None) is not None
        },
    )
    return config.without_default_layers(target.num_hidden_layers)
