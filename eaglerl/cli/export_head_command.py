"""`eaglerl export-head`: write a draft head so that another engine taps the same layers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eaglerl.cli.shared.options import parse_feature_layers, resolve_model
from eaglerl.cli.shared.terminal import DebugOption, busy, command, notes


@command
def export_head(
    head: Annotated[Path, typer.Argument(metavar="HEAD", help="Folder of the draft head.")],
    engine: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="ENGINE",
            help="vllm, sglang, openvino or llama.cpp; or eaglerl, for the commands here.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|FOLDER",
            help="The target: its default layers are not named, and --check needs it.",
            show_default=False,
        ),
    ] = None,
    taps: Annotated[
        str | None,
        typer.Option(
            "--taps",
            "--feature-layers",
            metavar="L,M,H",
            help="Layers whose inputs the head taps, where its config is wrong or unclear.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Compare the layers with their neighbours on a page of text first."
        ),
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Write a draft head for another engine.

    Engines look for the tapped layers in different places and count them differently; without any
    they all take EAGLE's default ones. What the engine does not run is left out and said.
    """
    layers = parse_feature_layers(taps)
    _check_output(head, output)
    if check and model is None:
        raise typer.BadParameter("needs the target: give --model", param_hint="--check")
    if not (head / "config.json").is_file():
        raise ValueError(f"HEAD must be a folder with a config.json, got {str(head)!r}")
    with busy("reading the head"):
        from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
        from eaglerl.eagle3.head.export_head import ENGINES
        from eaglerl.eagle3.head.export_head import export_head as write_head
        from eaglerl.eagle3.target.target_files import read_target_config

        if engine not in ENGINES:
            raise typer.BadParameter(
                f"engine must be one of {', '.join(ENGINES)}, got {engine!r}", param_hint="--for"
            )
        loaded = Eagle3DraftHead.from_pretrained(head, feature_layers=layers)
        target = None if model is None else resolve_model(model)
        count = None if target is None else read_target_config(target).num_hidden_layers
    if check:
        _compare(target, loaded)
    exported = write_head(loaded, output, engine, num_target_layers=count)
    console = notes()
    for sentence in exported.lost:
        console.print(f"lost: {sentence}", markup=False, soft_wrap=True)
    for sentence in exported.hints:
        console.print(f"to do: {sentence}", markup=False, soft_wrap=True)
    console.print(f"written: {exported.path}", markup=False, soft_wrap=True)


def _check_output(head: Path, output: Path) -> None:
    """Refuse to write over the head itself, which may lose what the engine does not run, or over
    another model."""
    if output.exists() and head.exists() and output.samefile(head):
        raise typer.BadParameter(
            "it is the head's own folder; name another one", param_hint="--output"
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
    """What a config.json says that its model is.

    Raises:
        ValueError: it cannot be read.
    """
    from eaglerl.json_file import AnyObject, read_json

    return read_json(config, AnyObject, "config", allow_nan=True).get("architectures")


def _compare(target: Path, head) -> None:
    """Print how well the head foresees the target with its layers and with their neighbours."""
    with busy("comparing tapped layers"):
        from transformers import AutoTokenizer

        from eaglerl.eagle3.fit import check_fit
        from eaglerl.eagle3.head.feature_layer_check import compare_neighbours
        from eaglerl.eagle3.target.make_target import load_target

        model = load_target(target, feature_layers=head.config.resolve_feature_layers)
        check_fit(model, head)
        head.to(model.embed_tokens.device)
        if head.embed_tokens is None:
            head.set_embed_tokens(model.embed_tokens)
        readings = compare_neighbours(model, head, AutoTokenizer.from_pretrained(target))
    console = notes()
    for reading in readings:
        marks = [
            "as read" if reading is readings[0] else "",
            "clearly better" if reading.clearly_better_than(readings[0]) else "",
        ]
        console.print(
            f"inputs of {list(reading.layers)}: foresees {reading.accuracy:.1%}, "
            f"{reading.mean_cross_entropy:.3f} nats {' '.join(filter(None, marks))}".rstrip(),
            markup=False,
            soft_wrap=True,
        )
