"""Statistics of a comparison's records."""

from eaglerl._moved import moved_attributes

__getattr__ = moved_attributes(__name__, "eaglerl.evaluation.statistics.summary")
