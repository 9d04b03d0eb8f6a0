"""Operations in native code, with checked arguments, and their references in plain torch."""

from eaglerl.ops.accept_path import accept_path, accept_path_ref
from eaglerl.ops.cached_attention import cached_attention, cached_attention_ref
from eaglerl.ops.draft_tree import DraftTree, DraftTreeBuilder, Frontier, tree_structure
from eaglerl.ops.move_rows import move_rows, move_rows_ref
from eaglerl.ops.rms_norm import rms_norm, rms_norm_ref
from eaglerl.ops.silu_mul import silu_mul, silu_mul_ref

__all__ = [
    "DraftTree",
    "DraftTreeBuilder",
    "Frontier",
    "accept_path",
    "accept_path_ref",
    "cached_attention",
    "cached_attention_ref",
    "move_rows",
    "move_rows_ref",
    "rms_norm",
    "rms_norm_ref",
    "silu_mul",
    "silu_mul_ref",
    "tree_structure",
]
