"""Libraries that only training needs: they are imported where they are first used."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Libraries of the extra ``train``.
TRAIN_LIBRARIES = ("matplotlib", "tensorboard")


def check_train_extra(*libraries: str) -> None:
    """Check that a run can log and draw, before it computes anything.

    Args:
        libraries: those to look for; all of the extra ``train`` by default.

    Raises:
        ImportError: one of them is not installed; the message names the extra.
    """
    for library in libraries or TRAIN_LIBRARIES:
        if importlib.util.find_spec(library) is None:
            raise ImportError(
                f"training needs {library}: install the extra with pip install 'eaglerl[train]'"
            )


def new_figure(width: float, height: float) -> Figure:
    """Make a figure that needs no display.

    Args:
        width: in inches.
        height: in inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    check_train_extra("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
