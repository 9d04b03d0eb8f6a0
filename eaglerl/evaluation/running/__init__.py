"""Running of comparisons, in one process or several."""

from eaglerl._moved import moved_attributes

__getattr__ = moved_attributes(__name__, "eaglerl.evaluation.running.comparison_process")
