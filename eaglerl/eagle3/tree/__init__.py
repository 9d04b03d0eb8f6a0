"""Draft trees: growing them, and merging looked-up tokens into them."""

from eaglerl._moved import moved_attributes

__getattr__ = moved_attributes(__name__, "eaglerl.eagle3.tree.tree_drafter")
