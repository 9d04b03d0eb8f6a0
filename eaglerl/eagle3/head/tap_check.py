"""Whether a head's ids of tapped layers were read as they are meant: what it foresees tells.

A head that is given other layers than it learned from drafts worse and nothing else shows it. Over
a text of a page, the head's distributions under two readings are compared with the target's, row by
row; shares of accepted tokens would need thousands of tokens to tell neighbouring layers apart.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.head.taps import Taps, other_reading
from eaglerl.eagle3.layers.rope import head_rope_tables
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.json_file import JsonObject, read_json

# Rows whose logits are looked at together.
_CHUNK_ROWS = 128
# Standard errors by which a reading must be better, and nats per token, to be worth a warning.
_CLEAR_ERRORS, _CLEAR_NATS = 3.0, 0.01
_TEXT = """\
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
class TapReading:
    """How well a head foresees a text with one choice of tapped layers.

    Attributes:
        layers: The layers, by their inputs.
        accuracy: Share of rows whose likeliest token is the target's.
        cross_entropy: (n,) float64 of every row, in nats: of the draft's distribution against the
            target's over the draft's vocabulary.
    """

    layers: Taps
    accuracy: float
    cross_entropy: torch.Tensor

    @property
    def mean_cross_entropy(self) -> float:
        """Nats per row."""
        return float(self.cross_entropy.mean())

    def clearly_better_than(self, other: TapReading) -> bool:
        """Whether the difference is more than chance, by a paired test, and worth a warning."""
        gain = other.cross_entropy - self.cross_entropy
        error = float(gain.std()) / math.sqrt(len(gain))
        return float(gain.mean()) > max(_CLEAR_ERRORS * error, _CLEAR_NATS)


def compare_taps(
    target: TargetModel,
    head: Eagle3DraftHead,
    readings: Sequence[Taps],
    token_ids: Sequence[int],
) -> list[TapReading]:
    """Compares what a head foresees of a text under each reading with what the target expects.

    Costs one pass of the target over the text for each reading, and leaves the target's tapped
    layers as they were.

    Args:
        target: The target.
        head: The head, with an embedding table.
        readings: Choices of tapped layers, by their inputs.
        token_ids: The text, four tokens at least.

    Returns:
        What each reading gives, in their order.

    Raises:
        ValueError: Layers that the target does not have, or too short a text.
    """
    ids = list(token_ids)[: target.max_positions]
    if len(ids) < 4:
        raise ValueError(f"token_ids must be four tokens at least, got {len(ids)}")
    before = target.feature_layers
    results = []
    try:
        for layers in readings:
            target.set_feature_layers(layers)
            results.append(_foresee(target, head, ids))
    finally:
        target.set_feature_layers(before)
    return results


def check_taps_of(
    path: str | Path, target: TargetModel, head: Eagle3DraftHead, tokenizer
) -> list[TapReading]:
    """Compares two readings of a head's layer ids where the ids leave it open which is meant.

    Args:
        path: The head's folder.
        target: The target, with the layers that the head's config was read to name.
        head: The head.
        tokenizer: The target's.

    Returns:
        Both readings, see `warn_of_other_taps`; none where the ids are plain.
    """
    data = read_json(Path(path) / "config.json", JsonObject, "draft head's config")
    other = other_reading(data, head.config.feature_layers, target.num_layers)
    return [] if other is None else warn_of_other_taps(target, head, other, tokenizer)


def warn_of_other_taps(
    target: TargetModel, head: Eagle3DraftHead, other: Taps, tokenizer
) -> list[TapReading]:
    """Compares the target's tapped layers with another reading, and warns if that does better.

    Args:
        target: The target, with the layers that the head's config was read to name.
        head: The head.
        other: The layers that its ids name by the other convention.
        tokenizer: The target's.

    Returns:
        Both readings, see `compare_taps`.
    """
    readings = [target.feature_layers, other]
    read, alternative = compare_taps(target, head, readings, tokenizer(_TEXT).input_ids)
    if alternative.clearly_better_than(read):
        gain = read.mean_cross_entropy - alternative.mean_cross_entropy
        warnings.warn(
            f"the head's layer ids were read as the inputs of layers {list(read.layers)}, but "
            f"those of {list(other)} suit it better: it foresees {alternative.accuracy:.1%} "
            f"instead of {read.accuracy:.1%} of {len(read.cross_entropy)} tokens and is "
            f"{gain:.3f} nats closer to the target. Pass feature_layers={list(other)}, or "
            f"rewrite the head by eaglerl export-head --taps {','.join(map(str, other))}",
            stacklevel=3,
        )
    return [read, alternative]


def compare_neighbours(target: TargetModel, head: Eagle3DraftHead, tokenizer) -> list[TapReading]:
    """Compares the target's tapped layers with those one before and one after all of them.

    Args:
        target: The target, with the layers that the head's config was read to name.
        head: The head, with an embedding table.
        tokenizer: The target's.

    Returns:
        The layers as they are first, then the neighbours that the target has.
    """
    layers = target.feature_layers
    shifted = [tuple(layer + shift for layer in layers) for shift in (-1, 1)]
    fitting = [taps for taps in shifted if min(taps) >= 0 and max(taps) < target.num_layers]
    return compare_taps(target, head, [layers, *fitting], tokenizer(_TEXT).input_ids)


@torch.inference_mode()
def _foresee(target: TargetModel, head: Eagle3DraftHead, ids: list[int]) -> TapReading:
    """Row t has features of token t and the embedding of token t + 1, and foresees token t + 2.

    What the target expects of token t + 2 are its logits after token t + 1.
    """
    rows = len(ids) - 1
    known = head.draft_to_target
    cache, features, teacher, best = target.new_cache(len(ids)), [], [], []
    for start in range(0, len(ids), _CHUNK_ROWS):
        chunk = ids[start : start + _CHUNK_ROWS]
        output = target.forward(RowBatch.causal(chunk, start), cache, "all")
        cache.commit(range(len(chunk)))
        features.append(output.features.clone())
        best.append(output.logits.argmax(-1))
        logits = output.logits if known is None else output.logits[:, known]
        teacher.append(torch.softmax(logits.double(), -1))
    log_probs = _draft_log_probs(head, ids, torch.cat(features)[:rows])
    cross_entropy = -(torch.cat(teacher)[1:] * log_probs).sum(-1)
    foreseen = log_probs.argmax(-1)
    hits = (foreseen if known is None else known[foreseen]) == torch.cat(best)[1:]
    accuracy = float(hits.double().mean())
    return TapReading(target.feature_layers, accuracy, cross_entropy.cpu())


def _draft_log_probs(head: Eagle3DraftHead, ids: list[int], features: torch.Tensor) -> torch.Tensor:
    """(n - 1, Vd) float64 of all rows of a text, each the first of a draft."""
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
