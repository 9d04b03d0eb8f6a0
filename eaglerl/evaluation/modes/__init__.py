"""Modes, the named ways of decoding, and the runners that decode in them."""

from eaglerl._moved import moved_attributes

__getattr__ = moved_attributes(__name__, "eaglerl.evaluation.modes.mode_names")
