"""Writes the batch-level rule for SGLang as one module without dependencies."""

from __future__ import annotations

import keyword
import pprint
from collections.abc import Mapping, Sequence
from importlib.metadata import version as installed_version
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

from eaglerl.files import atomic_path
from eaglerl.policy_export.step_costs import StepCosts, file_digest

#: Releases of SGLang whose protocol the module was written for.
SGLANG_VERSIONS = ("0.5.23",)
#: As long as nothing is learned, each token is believed to be accepted as often as this.
FIRST_SURVIVALS = (0.7, 0.49, 0.343)
_BEGIN, _END = "# <values>\n", "# </values>\n"
_WRITTEN = "# Written by eaglerl export-policy"


def export_sglang(
    path: str | Path,
    *,
    version: str = SGLANG_VERSIONS[-1],
    costs: str | Path | None = None,
    survivals: Sequence[float] | None = None,
) -> None:
    """Write the module; ``python PATH`` tests it.

    Args:
        path: a file whose name, without ``.py``, is to be the module's.
        version: the release of SGLang.
        costs: file of step costs, see `StepCosts.from_file`; None to learn them by the clock.
        survivals: share of drafts whose first, second, ... token is accepted, to begin with.

    Raises:
        ValueError: the release is unknown, the path is no module's, holds another file or cannot be
            written, or costs or survivals are unusable.
    """
    path = Path(path)
    if version not in SGLANG_VERSIONS:
        raise ValueError(
            f"version of sglang must be {' or '.join(SGLANG_VERSIONS)}, whose protocol is known, "
            f"got {version!r}"
        )
    _check_path(path)
    begin = check_survivals(FIRST_SURVIVALS if survivals is None else survivals)
    table = None if costs is None else StepCosts.from_file(costs)
    made_from = {
        "engine": "sglang",
        "version": version,
        "eaglerl": installed_version("eaglerl"),
        "costs": "the clock" if costs is None else f"{Path(costs).name}, {file_digest(costs)}",
        "acceptance": "a guess" if survivals is None else "given",
    }
    if table is not None and table.machine:
        made_from["machine"] = table.machine
    listed = None
    if table is not None:
        axes = {"batch_sizes": list(table.batch_sizes), "steps": list(table.steps)}
        listed = {**axes, "seconds": [list(row) for row in table.seconds]}
    text = render_module(made_from, listed, begin)
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"output {str(path)!r} cannot be written: {error.strerror}") from error


def render_module(
    made_from: dict[str, str], costs: Mapping[str, object] | None, survivals: tuple[float, ...]
) -> str:
    """Return the source of the module with these values in the place of its own."""
    source = files("eaglerl.policy_export").joinpath("sglang_policy.py").read_text("utf-8")
    before, rest = source.split(_BEGIN)
    _, after = rest.split(_END)
    values = "".join(
        f"{name} = {pprint.pformat(value, width=80, compact=True, sort_dicts=False)}\n"
        for name, value in (
            ("MADE_FROM: dict[str, Any]", made_from),
            ("COSTS: dict[str, Any] | None", costs),
            ("SURVIVALS: tuple[float, ...]", survivals),
        )
    )
    told = "".join(f"#   {name}: {_one_line(value)}\n" for name, value in made_from.items())
    return f"{_WRITTEN}, from\n{told}{before}{_BEGIN}{values}{_END}{after}"


def check_survivals(values: Sequence[float]) -> tuple[float, ...]:
    """Return survivals as a tuple.

    Raises:
        ValueError: there are none, or they do not descend within (0, 1].
    """
    found = tuple(float(value) for value in values)
    descend = all(b <= a for a, b in pairwise((1.0, *found)))
    if not found or not descend or not found[-1] > 0.0:
        raise ValueError(
            "acceptance must be the shares of drafts that are accepted up to the first, second, "
            f"... token, which descend from at most 1 and are above 0, got {list(found)}"
        )
    return found


def _check_path(path: Path) -> None:
    name = path.stem
    if path.suffix != ".py" or not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(
            f"output must be NAME.py, with a name that can be imported, got {path.name!r}"
        )
    if name == "sglang":
        raise ValueError("output must have another name than sglang, which it would hide")
    if path.exists() and not (path.is_file() and _is_ours(path)):
        raise ValueError(f"output {str(path)!r} exists and is no exported policy; name another")


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_WRITTEN)) == _WRITTEN.encode()


def _one_line(value: str) -> str:
    return " ".join(value.split())
