"""Operations in native code, with checked arguments, and their references in plain torch."""

from eaglerl.ops._accept_reference import accept_draft_ref, extend_ngrams_ref
from eaglerl.ops._policy_sb3 import check_reproduced
from eaglerl.ops._selection_reference import select_draft_nodes_ref
from eaglerl.ops.accept_draft import AcceptedDrafts, accept_draft
from eaglerl.ops.accept_path import accept_path, accept_path_ref
from eaglerl.ops.action_cache import ActionCache, CacheStats
from eaglerl.ops.action_cache_step import action_cache_step
from eaglerl.ops.cached_attention import cached_attention, cached_attention_ref
from eaglerl.ops.draft_tree import DraftTree, DraftTreeBuilder, Frontier, tree_structure
from eaglerl.ops.encoder import FusedEncoder
from eaglerl.ops.fused_encode import FusedEncodeOutput, fused_encode, fused_encode_ref
from eaglerl.ops.greedy_paths import GreedyPath, greedy_paths, greedy_paths_ref
from eaglerl.ops.move_rows import move_rows, move_rows_ref
from eaglerl.ops.ngram_table import NgramTable, extend_ngrams
from eaglerl.ops.node_selection import (
    LookedUp,
    NodeSelection,
    SelectionSizes,
    pack_rule,
    stack_rules,
)
from eaglerl.ops.policy_mlp import PolicyMlpOutput, policy_mlp, policy_mlp_ref
from eaglerl.ops.policy_weights import PolicyWeights
from eaglerl.ops.rms_norm import rms_norm, rms_norm_ref
from eaglerl.ops.select_draft_nodes import select_draft_nodes
from eaglerl.ops.silu_mul import silu_mul, silu_mul_ref

__all__ = [
    "AcceptedDrafts",
    "ActionCache",
    "CacheStats",
    "DraftTree",
    "DraftTreeBuilder",
    "Frontier",
    "FusedEncodeOutput",
    "FusedEncoder",
    "GreedyPath",
    "LookedUp",
    "NgramTable",
    "NodeSelection",
    "PolicyMlpOutput",
    "PolicyWeights",
    "SelectionSizes",
    "accept_draft",
    "accept_draft_ref",
    "accept_path",
    "accept_path_ref",
    "action_cache_step",
    "cached_attention",
    "cached_attention_ref",
    "check_reproduced",
    "extend_ngrams",
    "extend_ngrams_ref",
    "fused_encode",
    "fused_encode_ref",
    "greedy_paths",
    "greedy_paths_ref",
    "move_rows",
    "move_rows_ref",
    "pack_rule",
    "policy_mlp",
    "policy_mlp_ref",
    "rms_norm",
    "rms_norm_ref",
    "select_draft_nodes",
    "select_draft_nodes_ref",
    "silu_mul",
    "silu_mul_ref",
    "stack_rules",
    "tree_structure",
]
