"""The figures of a comparison, printed as tables or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Group
from rich.text import Text

from eaglerl.cli.shared.comparison_table import apart, comparison_tables
from eaglerl.cli.shared.many_at_once_tables import many_at_once_tables
from eaglerl.cli.shared.terminal import output


def show_comparison(folder: Path, against: Sequence[str] | None, *, as_json: bool) -> None:
    """Print a comparison that is on disk.

    Args:
        folder: its folder.
        against: labels of the modes to divide the speeds by; None for the usual ones.
        as_json: print the figures as JSON instead of tables.
    """
    from eaglerl.evaluation.results.records import load_comparison
    from eaglerl.evaluation.statistics.disturbance import disturbances
    from eaglerl.evaluation.statistics.many_at_once import serial_part, throughputs
    from eaglerl.evaluation.statistics.summary import summarise

    whole = load_comparison(folder)
    comparison, many = serial_part(whole), throughputs(whole)
    # What disturbed several questions at once disturbed the comparison.
    summary = replace(summarise(comparison, against or ()), disturbed=disturbances(whole))
    if as_json:
        several = {"at_once": [one.to_dict() for one in many]} if many else {}
        output().print_json(json.dumps(summary.to_dict() | several))
        return
    output().print(comparison_tables(comparison.manifest, summary))
    if many:
        output().print(Group(Text(), *apart(many_at_once_tables(many))))
