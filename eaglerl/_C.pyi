# ruff: noqa: N999 (the module is named _C, as torch names its own)
# The native extension. Addresses are those of tensors' memory, which eaglerl.ops has checked.
# tests/csrc/test_stub.py compares this file with the built module.
from collections.abc import Sequence

import numpy as np
from torch import Tensor

compiler: str
has_cuda: bool
max_head_dim: int
cache_dtypes: dict[str, int]
max_tree_rows: int
max_candidates: int
action_columns: tuple[str, ...]
fewest_action_columns: int
cache_words: dict[str, int]
selection_constants: dict[str, int]
ngram_constants: dict[str, int]
cache_record_words: int
cache_ring_words: int
cache_sketch_size: int
cache_modes: dict[str, int]
element_types: dict[str, int]
activations: dict[str, int]

def cpu_isa() -> str: ...
def available_isas() -> list[str]: ...
def set_isa(name: str, /) -> None: ...
def threading_backend() -> str: ...
def release_pool() -> bool: ...
def begin_cycle(threads: int, /) -> None: ...
def end_cycle() -> int: ...
def cycle_threads() -> int: ...
def storage_holds(tensor: Tensor, /) -> bool: ...
def check_range(name: str, index: int, count: int, end: int, /) -> None: ...
def rms_norm(
    x: int, x_stride: int, x_rows: int, index: int, weight: int, out: int, out_stride: int,
    rows: int, hidden: int, eps: float, threads: int, /,
) -> None: ...  # fmt: skip
def silu_mul(
    gate_up: int, stride: int, out: int, rows: int, intermediate: int, threads: int, /
) -> None: ...
def cached_attention(
    qkv: int, qkv_stride: int, cos: int, sin: int, table_length: int, positions: int,
    cache_rows: int, slots: int, key_cache: int, value_cache: int, slot_count: int,
    slot_stride: int, capacity: int, cache_dtype: int, prefix_lengths: int, mask: int,
    mask_words: int, block_length: int, query_norm: int, key_norm: int, eps: float,
    scale: float, out: int, out_stride: int, rows: int, query_heads: int, kv_heads: int,
    head_dim: int, threads: int, /,
) -> None: ...  # fmt: skip
def move_rows(
    cache: int, outer: int, outer_stride: int, inner: int, inner_stride: int, row_bytes: int,
    rows: int, count: int, destination: int, capacity: int, /,
) -> None: ...  # fmt: skip
def accept_path(parents: int, tokens: int, choices: int, rows: int, out_rows: int, /) -> int: ...
def tree_structure(parents: int, rows: int, levels: int, mask: int, words: int, /) -> None: ...
def philox4x32_10(counter: Sequence[int], key: Sequence[int], /) -> list[int]: ...
def read_seconds(memory: int, bytes: int, threads: int, /) -> float: ...
def greedy_paths(
    logits: int, logit_rows: int, stride: int, vocab: int,
    trees: Sequence[tuple[int, int, int, int]], threads: int, /,
) -> list[tuple[list[int], list[int], bool]]: ...  # fmt: skip
def select_draft_nodes(
    sizes: Sequence[int], slots: int, rule: int, level: int, state: Sequence[int],
    out: Sequence[int], drafted: Sequence[int], limits: int, /,
) -> None: ...  # fmt: skip
def accept_draft(
    sizes: Sequence[int], tree: Sequence[int], out: Sequence[int],
    table_sizes: Sequence[int] | None, table_memory: Sequence[int] | None, /,
) -> None: ...  # fmt: skip
def extend_ngrams(
    slots: int, sizes: Sequence[int], memory: Sequence[int], width: int, token_ids: int,
    counts: int, /,
) -> None: ...  # fmt: skip
def selection_rule_layout(sizes: Sequence[int], /) -> dict[str, int]: ...
def selection_tables() -> tuple[np.ndarray, np.ndarray]: ...
def action_cache_step(
    logits: int, action_params: int, features: int, state: int, reference: int, ring: int,
    slots: int, action: int, params: int, sequences: int, actions: int, columns: int, horizon: int,
    slot_count: int, reference_size: int, mode: int, temperature: float, seed: int, offset: int,
    fallback_action: int, /,
) -> None: ...  # fmt: skip

class TensorGuard:
    def __init__(self, tensors: Sequence[Tensor], direct: bool = True) -> None: ...
    def unchanged(self) -> bool: ...

class DraftTreeBuilder:
    def __init__(self) -> None: ...
    @property
    def top_k(self) -> int: ...
    @property
    def rounds(self) -> int: ...
    @property
    def pool_size(self) -> int: ...
    def begin(self, root_token: int, top_k: int, /) -> None: ...
    def first(self, logits: int, vocab: int, draft_to_target: int, /) -> None: ...
    def expand(
        self, logits: int, row_stride: int, vocab: int, draft_to_target: int, threads: int, /
    ) -> None: ...
    def frontier(self, tokens: int, parents: int, mask: int, words: int, /) -> None: ...
    def finish(
        self, total_tokens: int, tokens: int, parents: int, levels: int, mask: int, words: int,
        scores: int, /,
    ) -> None: ...  # fmt: skip
    def select(self, nodes: Sequence[int], lookup_tokens: Sequence[int], /) -> int: ...
    def finish_selected(
        self, tokens: int, parents: int, levels: int, mask: int, words: int, scores: int, /
    ) -> None: ...
    def lookup_nodes(self, lookup_tokens: Sequence[int], levels: int, nodes: int, /) -> None: ...
    def scores(self, out: int, /) -> None: ...
    def progress(
        self, lookup_tokens: Sequence[int], levels: int, /
    ) -> tuple[np.ndarray, np.ndarray | None]: ...

class Policy:
    def __init__(
        self,
        matrices: Sequence[int],
        vectors: Sequence[int],
        widths: Sequence[int],
        fc_weight: int,
        fc_bias: int,
        fc_inputs: int,
        type: int,
        activation: int,
        norm_weight: int,
        norm_chunks: int,
        eps: float,
        reads_layers: bool,
        action_params: int,
        actions: int,
        columns: int,
        horizon: int,
        fallback_action: int,
        /,
    ) -> None: ...

class PolicyEncoder:
    def __init__(self, policy: Policy, threads: int, /) -> None: ...
    def set_cache(
        self, mode: int, state: int, slots: int, reference: int, reference_size: int, ring: int, /
    ) -> None: ...
    def set_outputs(
        self,
        features: int,
        logits: int,
        action: int,
        params: int,
        max_rows: int,
        max_sequences: int,
        /,
    ) -> None: ...
    def set_draw(self, temperature: float, seed: int, /) -> None: ...
    def set_inputs(
        self,
        low: int,
        mid: int,
        high: int,
        low_stride: int,
        mid_stride: int,
        high_stride: int,
        type: int,
        available: int,
        /,
    ) -> None: ...
    def set_guards(
        self, inputs: TensorGuard | None, kept: TensorGuard | None, weights: TensorGuard | None, /
    ) -> None: ...
    def run(
        self, rows: int, row_count: int, last: int, sequences: int, slots: int, offset: int, /,
    ) -> float: ...  # fmt: skip

class OnlineAcceptance:
    def __init__(self, max_depth: int, plain_seconds: float, /) -> None: ...
    @property
    def rate(self) -> float: ...
    def node_weights(self) -> np.ndarray: ...
    def lookup_weights(self) -> np.ndarray: ...

class OnlineCost:
    def __init__(self, max_rows: int, widths: Sequence[int], /) -> None: ...
    def observe(
        self, rows: int, context_length: int, verify_seconds: float, width: int, depth: int,
        draft_seconds: float, /,
    ) -> None: ...  # fmt: skip
    @property
    def speed(self) -> float: ...
    @property
    def context_growth(self) -> float: ...
    @property
    def cycles(self) -> int: ...
    def passes(self, width: int, /) -> tuple[float, float]: ...
    def verify(self) -> np.ndarray: ...
    def deviation(self) -> np.ndarray: ...
    def trial_deviation(self) -> np.ndarray: ...
    def knots(self) -> np.ndarray: ...
    def belief(self) -> tuple[np.ndarray, np.ndarray]: ...
    def restore(self, mean: np.ndarray, spread: np.ndarray, cycles: int, /) -> None: ...

class OnlineCycle:
    def __init__(
        self, shared: OnlineAcceptance, top_k: int, max_depth: int, max_rows: int,
        lookup_tokens: int, base: np.ndarray, slope: np.ndarray, first_pass: float,
        later_pass: float, draft_slope: float, /,
    ) -> None: ...  # fmt: skip
    def plan(
        self, context_length: int, match_length: int, lookup_length: int, unread: int, /
    ) -> tuple[bool, int]: ...
    def observe_planned(
        self, accepted_rows: Sequence[int], token_ids: Sequence[int],
        looked_up: Sequence[int], rows: int, verify_seconds: float, draft_seconds: float, /,
    ) -> None: ...  # fmt: skip
    def reset(self) -> None: ...
    def begin(self) -> None: ...
    def limit(self, top_k: int, depth: int, rows: int, lookup: int, width: int, /) -> None: ...
    def score(
        self, scores: np.ndarray, depth: int, context_length: int, match_length: int,
        lookup_length: int, lookup_nodes: np.ndarray | None, /,
    ) -> bool: ...  # fmt: skip
    def select(self) -> tuple[np.ndarray, int]: ...
    def look(
        self, builder: DraftTreeBuilder, context_length: int, match_length: int,
        looked_up: Sequence[int], /,
    ) -> bool: ...  # fmt: skip
    def select_in(self, builder: DraftTreeBuilder, tokens: Sequence[int], /) -> tuple[int, int]: ...
    @property
    def selected(self) -> bool: ...
    def survival(self) -> tuple[np.ndarray, np.ndarray]: ...
    def count_lookup(self, first_accepted: bool, /) -> None: ...
    def selection_rule(self, sizes: Sequence[int], /) -> np.ndarray: ...
    def take_choice(self, nodes: Sequence[int], lookup: int, /) -> None: ...
    def observe(self, rows: Sequence[int], tokens: int, /) -> None: ...

def make_learning_cycle(
    shared: OnlineAcceptance, top_k: int, max_depth: int, max_rows: int, lookup_tokens: int,
    cost: OnlineCost, width: int, /,
) -> OnlineCycle: ...  # fmt: skip

class OnlineBatch:
    def __init__(
        self, shared: OnlineAcceptance, top_k: int, max_depth: int, slot_rows: int,
        lookup_tokens: int, cost: OnlineCost, slots: int, max_rows: int, chains: bool, /,
    ) -> None: ...  # fmt: skip
    @property
    def rate(self) -> float: ...
    @property
    def mean_rate(self) -> float: ...
    def join(self, slot: int, /) -> None: ...
    def plan(self, slots: Sequence[tuple[int, int, int, int, int, int]], /) -> list[int]: ...
    def score(
        self, slot: int, scores: np.ndarray, depth: int, context_length: int, match_length: int,
        lookup_length: int, lookup_nodes: np.ndarray | None, /,
    ) -> None: ...  # fmt: skip
    def look(
        self, slot: int, builder: DraftTreeBuilder, context_length: int, match_length: int,
        looked_up: Sequence[int], /,
    ) -> None: ...  # fmt: skip
    def decide(self) -> list[int]: ...
    def select(self) -> None: ...
    def survival(self, slot: int, /) -> tuple[np.ndarray, np.ndarray]: ...
    def selection(self, slot: int, /) -> tuple[np.ndarray, int]: ...
    def select_in(
        self, slot: int, builder: DraftTreeBuilder, looked_up: Sequence[int], /
    ) -> tuple[int, int]: ...
    def observe(
        self, slot: int, accepted_rows: Sequence[int], token_ids: Sequence[int],
        looked_up: Sequence[int], /,
    ) -> None: ...  # fmt: skip
    def observe_chains(
        self, slot: int, drafted: Sequence[int], looked_up: Sequence[int],
        token_ids: Sequence[int], /,
    ) -> None: ...  # fmt: skip
    def end_cycle(self, rows: int, verify_seconds: float, draft_seconds: float, /) -> None: ...

class NgramIndex:
    def __init__(self, longest: int, /) -> None: ...
    @property
    def length(self) -> int: ...
    def extend(self, tokens: Sequence[int], /) -> None: ...
    def propose(self, max_tokens: int, /) -> tuple[int, tuple[int, ...]]: ...
    def token_ids(self) -> tuple[int, ...]: ...

def block_formats() -> dict[str, int]: ...

class BlockMatrix:
    def __init__(
        self, format: int, outputs: int, inputs: int, file: np.ndarray | bytes | memoryview,
        rows: np.ndarray | None, threads: int,
    ) -> None: ...  # fmt: skip
    @property
    def bytes(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    def dequantise(self, begin: int, end: int) -> np.ndarray: ...
    def gather(self, token_ids: int, rows: int, out: int, threads: int) -> None: ...
    def multiply(self, x: int, out: int, rows: int, activations: str, threads: int) -> None: ...

_ProductParts = tuple[Sequence[BlockMatrix], np.ndarray | None]
_LayerParts = tuple[
    np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None,
    _ProductParts, _ProductParts, _ProductParts, _ProductParts,
]  # fmt: skip

class BlockDecoder:
    def __init__(
        self, intermediate: int, query_heads: int, kv_heads: int, head_dim: int, eps: float,
        scale: float, activations: str, embedding: BlockMatrix, layers: Sequence[_LayerParts],
        norm: np.ndarray, head: _ProductParts,
    ) -> None: ...  # fmt: skip
    def run(
        self,
        token_ids: int,
        rows: int,
        cos: int,
        sin: int,
        table_length: int,
        positions: int,
        cache_rows: int,
        slots: int,
        cache: int,
        slot_count: int,
        slot_stride: int,
        layer_stride: int,
        value_offset: int,
        capacity: int,
        cache_dtype: int,
        prefix_lengths: int,
        mask: int,
        mask_words: int,
        block_length: int,
        feature_layers: Sequence[int],
        features: int,
        last: int,
        logits: int,
        logits_rows: int,
        threads: int,
        /,
    ) -> None: ...

# Only where has_cuda is true.

class CudaFoldedDecision:
    def __init__(
        self,
        matrices: Sequence[int],
        vectors: Sequence[int],
        widths: Sequence[int],
        type: int,
        activation: int,
        norm_weight: int,
        norm_chunks: int,
        eps: float,
        reads_layers: bool,
        action_params: int,
        actions: int,
        columns: int,
        horizon: int,
        fallback_action: int,
        /,
    ) -> None: ...
    def set_cache(
        self, mode: int, state: int, slots: int, reference: int, reference_size: int, ring: int, /
    ) -> None: ...
    def set_outputs(self, logits: int, action: int, params: int, /) -> None: ...
    def set_draw(self, temperature: float, seed: int, /) -> None: ...
    def set_inputs(
        self,
        low: int,
        mid: int,
        high: int,
        low_stride: int,
        mid_stride: int,
        high_stride: int,
        type: int,
        available: int,
        /,
    ) -> None: ...
    def scratch(self, sequences: int, /) -> tuple[int, int]: ...
    def set_scratch(self, scratch: int, tickets: int, /) -> None: ...
    def run(
        self,
        rows: int,
        row_count: int,
        last: int,
        sequences: int,
        slots: int,
        offset: int,
        stream: int,
        /,
    ) -> None: ...

def cuda_action_cache_step(
    logits: int, action_params: int, features: int, state: int, reference: int, ring: int,
    slots: int, action: int, params: int, sequences: int, actions: int, columns: int, horizon: int,
    slot_count: int, reference_size: int, mode: int, temperature: float, seed: int, offset: int,
    fallback_action: int, stream: int, /,
) -> None: ...  # fmt: skip
