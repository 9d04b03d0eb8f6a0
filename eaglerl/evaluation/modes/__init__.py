"""Ways to decode: their names, and what decodes in each."""

from eaglerl._moved import moved_attributes

__getattr__ = moved_attributes(__name__, "eaglerl.evaluation.modes.mode_names")
