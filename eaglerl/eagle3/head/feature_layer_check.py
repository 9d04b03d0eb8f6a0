"""Check whether a head's layer ids were read as they are meant, by how well it predicts the target.

A head with the wrong feature layers drafts worse, and nothing else shows the mistake. The check
compares the head's distributions under two readings of its ids with the target's, row by row, over
one page of text. By acceptance rates, thousands of tokens would be needed to distinguish
neighbouring layers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.head.feature_layers import FeatureLayers, other_reading
from eaglerl.eagle3.layers.rope import head_rope_tables
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.json_file import JsonObject, read_json

# Rows per pass: the target's logits of one pass are (128, V) float64 after the softmax.
_CHUNK_ROWS = 128
# A reading must be better by this many standard errors, and by this many nats per token, for a
# warning.
_CLEAR_ERRORS, _CLEAR_NATS = 3.0, 0.01
#: A page of prose, arithmetic, code and a letter, of no benchmark.
PAGE = """\
Rivers do not run straight. A stream that starts down a smooth slope soon meets a stone or a
root, and the water turns aside a little. Where it turns, it presses against the outer bank and
wears it away; on the inner side it slows down and drops the sand that it carried. So the bend
grows, year after year, until the loop is so wide that a flood breaks through its neck and
leaves the old bed behind as a quiet lake.

Question: How many legs do three spiders and two ants have together?
Answer: A spider has eight legs, so three spiders have 3 * 8 = 24 legs. An ant has six legs, so
two ants have 2 * 6 = 12 legs. Together they have 24 + 12 = 36 legs.

def count_words(text):
    # How often each word occurs in a text.
    counts = {}
    for word in text.lower().split():
        counts[word] = counts.get(word, 0) + 1
    return counts

To bake a simple bread you need flour, water, salt and yeast. Mix them in a bowl, knead the
dough for ten minutes, and let it rest in a warm place until it has doubled in size. Then shape
it, wait for another half an hour, and put it into a hot oven. When the crust is brown and the
loaf sounds hollow, it is done. Let it cool down before you cut the first slice, however hard it
is to wait.

Dear Anna, thank you for your letter and for the photographs. I am glad that you arrived safely
and that the flat is as bright as you hoped. We will visit you in the spring, when the trains
run again.
"""


@dataclass(frozen=True)
class LayerReading:
    """How well a head predicts the target over a text with one choice of feature layers.

    Attributes:
        layers: the layers, by their inputs.
        accuracy: share of rows in which the head's most probable token is the target's.
        cross_entropy: (n,) float64, in nats, of the draft's distribution against the target's over
            the draft's vocabulary, one number per row.
    """

    layers: tuple[int, ...]
    accuracy: float
    cross_entropy: torch.Tensor

    @property
    def mean_cross_entropy(self) -> float:
        """Mean over the rows, in nats."""
        return float(self.cross_entropy.mean())

    def clearly_better_than(self, other: LayerReading) -> bool:
        """Return whether a paired test finds the gain significant, and large enough to matter."""
        gain = other.cross_entropy - self.cross_entropy
        error = float(gain.std()) / math.sqrt(len(gain))
        return float(gain.mean()) > max(_CLEAR_ERRORS * error, _CLEAR_NATS)


def compare_feature_layers(
    target: TargetModel,
    head: Eagle3DraftHead,
    readings: Sequence[tuple[int, ...]],
    token_ids: Sequence[int],
) -> list[LayerReading]:
    """Compare a head's predictions with the target's under several choices of feature layers.

    Runs one pass of the target over the text per choice, and restores the target's feature layers.

    Args:
        target: the target.
        head: the head, with an embedding table.
        readings: choices of feature layers, by their inputs.
        token_ids: the text, at least four tokens.

    Returns:
        One result per choice, in the order of `readings`.

    Raises:
        ValueError: the target does not have these layers, or the text is too short.
    """
    ids = list(token_ids)[: target.max_positions]
    if len(ids) < 4:
        raise ValueError(f"token_ids must be at least four tokens, got {len(ids)}")
    before = target.feature_layers
    results = []
    try:
        for layers in readings:
            target.set_feature_layers(layers)
            results.append(_predict(target, head, ids))
    finally:
        target.set_feature_layers(before)
    return results


def check_layer_ids(
    path: str | Path, target: TargetModel, head: Eagle3DraftHead, tokenizer: PreTrainedTokenizerBase
) -> list[LayerReading]:
    """Compare both readings of a head's layer ids, if the ids are ambiguous.

    Args:
        path: the head's folder.
        target: the target, with the feature layers as they were read from the head's config.
        head: the head.
        tokenizer: the target's.

    Returns:
        Both readings, see `warn_of_other_layers`; an empty list if the ids are unambiguous.
    """
    data = read_json(Path(path) / "config.json", JsonObject, "draft head's config")
    other = other_reading(data, head.config.feature_layers, target.num_layers)
    return [] if other is None else warn_of_other_layers(target, head, other, tokenizer)


def warn_of_other_layers(
    target: TargetModel,
    head: Eagle3DraftHead,
    other: FeatureLayers,
    tokenizer: PreTrainedTokenizerBase,
) -> list[LayerReading]:
    """Compare the target's feature layers with another reading, and warn if that is better.

    Args:
        target: the target, with the feature layers as they were read from the head's config.
        head: the head.
        other: the layers that its ids name by the other convention.
        tokenizer: the target's.

    Returns:
        Both readings, see `compare_feature_layers`.
    """
    readings = [target.feature_layers, other]
    read, alternative = compare_feature_layers(target, head, readings, tokenizer(PAGE).input_ids)
    if alternative.clearly_better_than(read):
        gain = read.mean_cross_entropy - alternative.mean_cross_entropy
        warnings.warn(
            f"the head's layer ids were read as the inputs of layers {list(read.layers)}, but "
            f"those of {list(other)} suit it better: it predicts {alternative.accuracy:.1%} "
            f"instead of {read.accuracy:.1%} of {len(read.cross_entropy)} tokens and is "
            f"{gain:.3f} nats closer to the target. Pass feature_layers={list(other)}, or "
            f"rewrite the head by eaglerl export-head --taps {','.join(map(str, other))}",
            stacklevel=3,
        )
    return [read, alternative]


def compare_neighbours(
    target: TargetModel, head: Eagle3DraftHead, tokenizer: PreTrainedTokenizerBase
) -> list[LayerReading]:
    """Compare the target's feature layers with those one layer before and one after.

    Args:
        target: the target, with the feature layers as they were read from the head's config.
        head: the head, with an embedding table.
        tokenizer: the target's.

    Returns:
        First the layers as they are, then those of the neighbours that exist in the target.
    """
    layers = low, mid, high = target.feature_layers
    shifted = [(low + shift, mid + shift, high + shift) for shift in (-1, 1)]
    fitting = [ids for ids in shifted if min(ids) >= 0 and max(ids) < target.num_layers]
    return compare_feature_layers(target, head, [layers, *fitting], tokenizer(PAGE).input_ids)


@torch.inference_mode()
def _predict(target: TargetModel, head: Eagle3DraftHead, ids: list[int]) -> LayerReading:
    """Predict a text with the head, and compare with the target.

    Row t of the head has the features of token t and the embedding of token t + 1, and predicts
    token t + 2. The target's prediction of that token is its logits after token t + 1.
    """
    rows = len(ids) - 1
    known = head.draft_to_target
    cache, features, teacher, best = target.new_cache(len(ids)), [], [], []
    for start in range(0, len(ids), _CHUNK_ROWS):
        chunk = ids[start : start + _CHUNK_ROWS]
        output = target.forward(RowBatch.causal(chunk, start), cache, "all")
        cache.commit(range(len(chunk)))
        assert output.logits is not None, "all were asked for"
        features.append(output.features.clone())
        best.append(output.logits.argmax(-1))
        logits = output.logits if known is None else output.logits[:, known]
        teacher.append(torch.softmax(logits.double(), -1))
    log_probs = _draft_log_probs(head, ids, torch.cat(features)[:rows])
    cross_entropy = -(torch.cat(teacher)[1:] * log_probs).sum(-1)
    predicted = log_probs.argmax(-1)
    hits = (predicted if known is None else known[predicted]) == torch.cat(best)[1:]
    accuracy = float(hits.double().mean())
    return LayerReading(target.feature_layers, accuracy, cross_entropy.cpu())


def _draft_log_probs(head: Eagle3DraftHead, ids: list[int], features: torch.Tensor) -> torch.Tensor:
    """Return (n - 1, Vd) float64 log-probabilities: every row as the first of a draft."""
    config, device = head.config, head.fc.weight.device
    rows = len(features)
    tables = head_rope_tables(
        config.head_dim,
        config.rope_parameters,
        max_position_embeddings=config.max_position_embeddings,
        device=device,
    ).first(rows)
    places = torch.arange(rows, device=device)
    distance = places[:, None] - places
    visible = distance >= 0
    if config.sliding_window is not None:
        visible &= distance < config.sliding_window

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        attended = nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, enable_gqa=True
        )
        return attended[0].transpose(0, 1)

    hidden = head.reduce(features.to(head.fc.weight))
    cos, sin = (table[:rows] for table in tables)
    tokens = torch.tensor(ids[1:], device=device)
    output = head.midlayer(head.embed(tokens), hidden, cos, sin, attention)
    return torch.log_softmax(head.logits(output).double(), dim=-1)
