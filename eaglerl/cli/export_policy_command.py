"""`eaglerl export-policy`: write a policy for another engine or runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from eaglerl.cli.shared.open_policy import policy_folder
from eaglerl.cli.shared.settings import settings_command
from eaglerl.cli.shared.terminal import DebugOption, busy, say

_ENGINES = ("sglang", "onnx")


@dataclass(frozen=True, kw_only=True)
class ExportPolicySettings:
    """Options of `eaglerl export-policy`."""

    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="[POLICY] OUT",
            help="For onnx, a trained policy by its folder or name; then the file to write, OUT.py "
            "or OUT.onnx.",
        ),
    ]
    engine: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="ENGINE",
            help="sglang, or sglang==VERSION: the rule that learns while serving, as a module; "
            "onnx: a trained policy as a graph.",
        ),
    ]
    costs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For sglang: seconds of a step by batch size and drafted tokens, or costs that "
            "headroom reads. Default: the server's clock, on one GPU.",
            show_default=False,
        ),
    ] = None
    acceptance: Annotated[
        str | None,
        typer.Option(
            metavar="P,...",
            help="For sglang: share of drafts that are accepted up to the first, second, ... "
            "token, to begin with.",
            show_default=False,
        ),
    ] = None
    debug: DebugOption = False

    def __post_init__(self) -> None:
        name, given, _ = self.engine.partition("==")
        if name not in _ENGINES or (given and name != "sglang"):
            raise typer.BadParameter(
                f"engine must be one of {', '.join(_ENGINES)}, got {self.engine!r}",
                param_hint="--for",
            )
        wanted = ["POLICY", "OUT"] if name == "onnx" else ["OUT"]
        if len(self.paths) != len(wanted):
            raise typer.BadParameter(
                f"{name} takes {' and '.join(wanted)}, got {len(self.paths)} paths",
                param_hint="[POLICY] OUT",
            )
        for option in ("costs", "acceptance"):
            if name != "sglang" and getattr(self, option) is not None:
                raise typer.BadParameter(f"is for sglang, not {name}", param_hint=f"--{option}")


@settings_command
def export_policy(settings: ExportPolicySettings) -> None:
    """Write a policy for another engine.

    For SGLang, this is one module without dependencies, which chooses the number of drafted tokens
    for each batch and learns while serving; python OUT.py tests it. For ONNX, it is the graph of a
    trained PPO or DQN policy, from features to the tree.
    """
    name, _, version = settings.engine.partition("==")
    *sources, output = settings.paths
    if not output.parent.is_dir():
        raise ValueError(f"the folder of the output must exist, got {str(output)!r}")
    if name == "onnx":
        with busy("exporting the policy"):
            from eaglerl.policy_export.export_onnx import export_onnx

            described = export_onnx(policy_folder(sources[0], "POLICY", ()), output)
        say(f"written: {output}")
        say(f"written: {described}")
        return
    from eaglerl.policy_export.export_sglang import SGLANG_VERSIONS, export_sglang

    export_sglang(
        output,
        version=version or SGLANG_VERSIONS[-1],
        costs=settings.costs,
        survivals=_parse_shares(settings.acceptance),
    )
    say(f"written: {output}")
    say(f"to do: python {output} tests it; python {output} --package FOLDER writes a package")


def _parse_shares(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    from eaglerl.policy_export.export_sglang import check_survivals

    try:
        return check_survivals([float(part) for part in text.split(",")])
    except ValueError as problem:
        raise typer.BadParameter(str(problem), param_hint="--acceptance") from None
