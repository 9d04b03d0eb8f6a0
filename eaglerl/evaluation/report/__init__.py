"""Comparisons as one self-contained HTML report.

It needs the extra ``report`` (jinja2, matplotlib and statsmodels). Names are imported when they are
first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eaglerl.evaluation.report.evidence import Evidence
    from eaglerl.evaluation.report.writing import write_report

_HOMES = {"Evidence": "evidence", "write_report": "writing"}
_LIBRARIES = ("jinja2", "markupsafe", "matplotlib", "scipy", "statsmodels")

__all__ = ["Evidence", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in _LIBRARIES:
            raise
        raise ImportError(
            f"a report needs {library}: install the extra with pip install 'eaglerl[report]'"
        ) from error
    return getattr(module, name)
