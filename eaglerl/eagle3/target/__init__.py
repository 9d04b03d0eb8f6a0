"""The target: the language model that is accelerated."""

from eaglerl._moved import moved_attributes

__getattr__ = moved_attributes(__name__, "eaglerl.eagle3.target.target_model")
