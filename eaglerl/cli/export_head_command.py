"""`eaglerl export-head`: write a draft head for another engine, with the same feature layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eaglerl.cli.shared.options import resolve_model
from eaglerl.cli.shared.parse_options import parse_feature_layers
from eaglerl.cli.shared.settings import settings_command
from eaglerl.cli.shared.terminal import DebugOption, busy, say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
    from eaglerl.eagle3.head.export_head import HeadExport
    from eaglerl.eagle3.head.feature_layer_check import LayerReading
    from eaglerl.eagle3.target.target_model import TargetModel


@dataclass(frozen=True, kw_only=True)
class ExportHeadSettings:
    """Options of `eaglerl export-head`."""

    head: Annotated[Path, typer.Argument(metavar="HEAD", help="Folder of the draft head.")]
    engine: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="ENGINE",
            help="vllm, sglang, openvino or llama.cpp; or eaglerl, for the commands here.",
        ),
    ]
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write.")
    ]
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|FOLDER",
            help="The target. With it, feature layers that are its default ones are left out of "
            "the config, weights stand in for fc_norm, and what the engine loses is measured; "
            "--check needs it.",
            show_default=False,
        ),
    ] = None
    taps: Annotated[
        str | None,
        typer.Option(
            "--taps",
            "--feature-layers",
            metavar="L,M,H",
            help="Layers whose inputs are the head's features, if its config is wrong or unclear.",
            show_default=False,
        ),
    ] = None
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="First compare the feature layers with their neighbours on a page of text.",
        ),
    ] = False
    lossy: Annotated[
        bool,
        typer.Option("--lossy", help="Write the head even if the engine does not run all of it."),
    ] = False
    debug: DebugOption = False

    def __post_init__(self) -> None:
        if self.check and self.model is None:
            raise typer.BadParameter("needs the target: give --model", param_hint="--check")


@settings_command
def export_head(settings: ExportHeadSettings) -> None:
    """Write a draft head for another engine.

    Engines look for the feature layers in different places and count them differently; if they
    find none, all take EAGLE's default layers. A head of which the engine does not run everything
    is refused, with the measured loss if the target is given; --lossy writes it.
    """
    layers = parse_feature_layers(settings.taps)
    _check_output(settings.head, settings.output)
    if not (settings.head / "config.json").is_file():
        raise ValueError(f"HEAD must be a folder with a config.json, got {str(settings.head)!r}")
    with busy("reading the head"):
        from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
        from eaglerl.eagle3.head.export_engines import ENGINES
        from eaglerl.eagle3.head.export_head import plan_export
        from eaglerl.eagle3.target.target_files import read_target_config

        if settings.engine not in ENGINES:
            raise typer.BadParameter(
                f"engine must be one of {', '.join(ENGINES)}, got {settings.engine!r}",
                param_hint="--for",
            )
        head = Eagle3DraftHead.from_pretrained(settings.head, feature_layers=layers)
        target = None if settings.model is None else resolve_model(settings.model)
        count = None if target is None else read_target_config(target).num_hidden_layers
    plan = plan_export(head, settings.engine, num_target_layers=count)
    if target is not None and (settings.check or plan.lost):
        with busy("loading the target"):
            model, tokenizer = _load(target, head)
        if settings.check:
            _show_layers(model, head, tokenizer)
        if plan.lost:
            plan = _with_stand_ins(model, head, tokenizer, settings)
    elif plan.lost and not settings.lossy:
        raise ValueError(
            f"{'; '.join(plan.lost)}. Give the target by --model, and the loss is measured, or "
            "pass --lossy"
        )
    plan.write(settings.output)
    for sentence in plan.lost:
        say(f"lost: {sentence}")
    for sentence in plan.hints:
        say(f"to do: {sentence}")
    say(f"written: {settings.output}")


def _with_stand_ins(
    model: TargetModel,
    head: Eagle3DraftHead,
    tokenizer: PreTrainedTokenizerBase,
    settings: ExportHeadSettings,
) -> HeadExport:
    """Return the head as the engine runs it, and say what that loses.

    Raises:
        ValueError: something is lost, and the settings do not accept that.
    """
    from eaglerl.eagle3.head.export_head import plan_export
    from eaglerl.eagle3.head.export_loss import measure_loss
    from eaglerl.eagle3.head.fc_norm_stand_ins import feature_rms
    from eaglerl.eagle3.head.feature_layer_check import PAGE

    with busy("measuring what the engine loses"):
        rms = feature_rms(model, tokenizer(PAGE).input_ids)
        plan = plan_export(head, settings.engine, num_target_layers=model.num_layers, rms=rms)
        loss = measure_loss(model, head, plan.head, tokenizer)
    if not settings.lossy:
        raise ValueError(f"{'; '.join(plan.lost)}. Measured: {loss}. Pass --lossy to write it")
    say(f"measured: {loss}")
    return plan


def _check_output(head: Path, output: Path) -> None:
    """Refuse to overwrite the head itself, or another model.

    An exported head lacks what its engine does not support, so the original must survive.
    """
    if output.exists() and head.exists() and output.samefile(head):
        raise typer.BadParameter(
            "it is the head's own folder; name another folder", param_hint="--output"
        )
    config = output / "config.json"
    if not config.exists():
        return
    kinds = _architectures(config)
    if kinds != ["LlamaForCausalLMEagle3"]:
        raise typer.BadParameter(
            f"{str(output)!r} holds another model ({kinds}), which would be overwritten; name "
            "another folder",
            param_hint="--output",
        )


def _architectures(config: Path) -> object:
    """Return the architectures that a config.json names.

    Raises:
        ValueError: it cannot be read.
    """
    from eaglerl.json_file import AnyObject, read_json

    return read_json(config, AnyObject, "config", allow_nan=True).get("architectures")


def _show_layers(
    model: TargetModel, head: Eagle3DraftHead, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Print how well the head predicts the target with its layers, and with their neighbours."""
    with busy("comparing feature layers"):
        readings = _compare_layers(model, head, tokenizer)
    for reading in readings:
        marks = [
            "as read" if reading is readings[0] else "",
            "clearly better" if reading.clearly_better_than(readings[0]) else "",
        ]
        say(
            f"inputs of {list(reading.layers)}: predicts {reading.accuracy:.1%}, "
            f"{reading.mean_cross_entropy:.3f} nats {' '.join(filter(None, marks))}".rstrip()
        )


def _compare_layers(
    model: TargetModel, head: Eagle3DraftHead, tokenizer: PreTrainedTokenizerBase
) -> list[LayerReading]:
    from eaglerl.eagle3.head.feature_layer_check import compare_neighbours

    if not head.has_embedding:
        head.set_embed_tokens(model.embedding)
    return compare_neighbours(model, head, tokenizer)


def _load(target: Path, head: Eagle3DraftHead) -> tuple[TargetModel, PreTrainedTokenizerBase]:
    from transformers import AutoTokenizer

    from eaglerl.eagle3.fit import check_fit
    from eaglerl.eagle3.target.make_target import load_target

    model = load_target(target, feature_layers=head.config.resolve_feature_layers)
    check_fit(model, head)
    head.to(model.device)
    return model, AutoTokenizer.from_pretrained(target)
