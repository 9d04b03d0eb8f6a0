"""Write a draft head for another engine, with the feature layers where that engine looks for them.

What an engine does not run is left out; nearly equal weights stand in for ``fc_norm``. A head that
loses something is written on demand only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eaglerl.eagle3.head.draft_checkpoint import write_checkpoint
from eaglerl.eagle3.head.draft_config import Eagle3Config
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.head.export_engines import ENGINES, FEATURES, Engine, described
from eaglerl.eagle3.head.fc_norm_stand_ins import fold_fc_norm, join_fc_norm, with_config
from eaglerl.eagle3.head.feature_layers import eagle_feature_layers


@dataclass(frozen=True)
class HeadExport:
    """A head as another engine runs it.

    Attributes:
        head: the head with what the engine reads; it decodes here as it does there.
        data: the content of its ``config.json``.
        lost: what differs from the original head, a sentence each.
        hints: what the user still has to do, a sentence each.
        maps: whether ``d2t`` and ``t2d`` are written for a head without a vocabulary of its own.
    """

    head: Eagle3DraftHead
    data: Mapping[str, Any]
    lost: tuple[str, ...]
    hints: tuple[str, ...]
    maps: bool = False

    def write(self, output: str | Path) -> Path:
        """Write ``config.json`` and ``model.safetensors`` into a folder; created if missing."""
        config, state = self.head.config, self.head.state_dict()
        if self.head.owns_embedding and self.head.embed_tokens is not None:
            state["embed_tokens.weight"] = self.head.embed_tokens
        if self.maps and not config.prunes_vocabulary:
            state["d2t"] = torch.zeros(config.draft_vocab_size, dtype=torch.int64)
            state["t2d"] = torch.ones(config.vocab_size, dtype=torch.bool)
        write_checkpoint(output, config, state, data=self.data)
        return Path(output)


def plan_export(
    head: Eagle3DraftHead,
    engine: str,
    *,
    num_target_layers: int | None = None,
    rms: torch.Tensor | None = None,
) -> HeadExport:
    """Make of a head what an engine reads, without writing it.

    Args:
        head: the head, as `Eagle3DraftHead.from_pretrained` reads it.
        engine: one of `ENGINES`.
        num_target_layers: N, the target's number of layers, if known: EAGLE's default layers are
            then left out of the config.
        rms: (n, 3) root mean squares of the head's features over a text, see `feature_rms`. With
            them, an engine without ``fc_norm`` gets weights that compute nearly the same; without
            them, the head goes without its norms.

    Raises:
        ValueError: the engine is unknown or cannot run the head, or the target does not have the
            layers.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {list(ENGINES)}, got {engine!r}")
    about, config = ENGINES[engine], head.config
    width = config.feature_hidden_size
    if width != config.hidden_size and not about.own_width:
        raise ValueError(
            f"{about.name} runs heads of the target's width only: the head's hidden_size is "
            f"{config.hidden_size}, the target's {width}"
        )
    layers = config.feature_layers
    if num_target_layers is not None:
        layers = config.resolve_feature_layers(num_target_layers)
        if layers == eagle_feature_layers(num_target_layers):
            layers = None
    lost = _lost(config, about, stand_in=rms is not None)
    head = _as_run(head, about, rms)
    data = head.config.replace(feature_layers=None).to_dict()
    if engine != "eaglerl":
        data = {key: value for key, value in data.items() if not key.startswith("eaglerl_")}
    if layers is not None:
        about.place(data, layers)
    hints = about.hints(config, layers, num_target_layers)
    return HeadExport(head, data, lost, tuple(hints), about.needs_maps)


def export_head(
    head: Eagle3DraftHead,
    output: str | Path,
    engine: str,
    *,
    num_target_layers: int | None = None,
    rms: torch.Tensor | None = None,
    lossy: bool = False,
) -> HeadExport:
    """Write a head so that an engine takes the features of the layers it was trained on.

    Args:
        head: see `plan_export`.
        output: folder for ``config.json`` and ``model.safetensors``; created if missing.
        engine: see `plan_export`.
        num_target_layers: see `plan_export`.
        rms: see `plan_export`.
        lossy: write the head even if the engine does not run all of it.

    Returns:
        What was written, what the engine loses, and what is left to do.

    Raises:
        ValueError: see `plan_export`; or the engine does not run all of the head, and ``lossy`` is
            false.
    """
    plan = plan_export(head, engine, num_target_layers=num_target_layers, rms=rms)
    if plan.lost and not lossy:
        raise ValueError(f"{'; '.join(plan.lost)}. Pass lossy=True to write it all the same")
    plan.write(output)
    return plan


def _as_run(head: Eagle3DraftHead, about: Engine, rms: torch.Tensor | None) -> Eagle3DraftHead:
    """Return the head without what the engine does not run."""
    if head.config.fc_norm and "fc_norm" not in about.reads and rms is not None:
        stand_in = join_fc_norm if "norm_before_fc" in about.reads else fold_fc_norm
        head = stand_in(head, rms)
    kept = {
        name: getattr(head.config, name) if name in about.reads else plain
        for name, (plain, _) in FEATURES.items()
    }
    if not kept["norm_output"]:
        kept["norm_feedback"] = False
    config = head.config.replace(**kept)
    dropped = tuple(
        prefix
        for name, (_, prefixes) in FEATURES.items()
        if getattr(config, name) != getattr(head.config, name)
        for prefix in prefixes
    )
    state = head.state_dict()
    return with_config(
        head, config, {key: state[key] for key in state if not key.startswith(dropped)}
    )


def _lost(config: Eagle3Config, about: Engine, *, stand_in: bool) -> tuple[str, ...]:
    lost = []
    for name, (plain, _) in FEATURES.items():
        if getattr(config, name) == plain or name in about.reads:
            continue
        sentence = f"{about.name} does not run {described(name, config)}"
        if name == "fc_norm" and stand_in:
            place = "one norm" if "norm_before_fc" in about.reads else "fc"
            sentence += f": {place} with the usual scale of the features stands in for them"
        lost.append(sentence)
    return tuple(lost)
