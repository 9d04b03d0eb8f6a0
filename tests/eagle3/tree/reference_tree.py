"""EAGLE-3's draft head and dynamic tree in float64, one node at a time, with explicit ancestors."""

import math
from dataclasses import dataclass, field

import torch

from eaglerl.eagle3.head.draft_head import Eagle3DraftHead

KeyValue = tuple[torch.Tensor, torch.Tensor]


class Float64Head:
    """The head's arithmetic from its state dict; one token at a time."""

    def __init__(self, head: Eagle3DraftHead) -> None:
        self.config = head.config
        self.state = {name: value.double() for name, value in head.state_dict().items()}
        self.table = head.embed_tokens.double()
        offsets = head.state_dict().get("d2t")
        size = head.config.draft_vocab_size
        self.target_ids = [i + (0 if offsets is None else int(offsets[i])) for i in range(size)]

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        mean_square = (x * x).mean()
        return x / torch.sqrt(mean_square + self.config.rms_norm_eps) * self.state[name]

    def _rotated(self, heads: torch.Tensor, position: int) -> torch.Tensor:
        half = self.config.head_dim // 2
        theta = self.config.rope_parameters["rope_theta"]
        out = heads.clone()
        for i in range(half):
            angle = position / theta ** (i / half)
            x, y = heads[:, i], heads[:, i + half]
            out[:, i] = x * math.cos(angle) - y * math.sin(angle)
            out[:, i + half] = y * math.cos(angle) + x * math.sin(angle)
        return out

    def feature(self, features: torch.Tensor) -> torch.Tensor:
        """The draft's feature (h,) of a token from the target's features (3k,)."""
        parts = list(features.double().chunk(3))
        if self.config.fc_norm:
            parts = [self._norm(part, f"fc_norm.{i}.weight") for i, part in enumerate(parts)]
        return self.state["fc.weight"] @ torch.cat(parts)

    def row(
        self, token: int, feature: torch.Tensor, position: int, seen: list[KeyValue]
    ) -> tuple[torch.Tensor, KeyValue]:
        """One token's output (h,), and the key and value that it leaves.

        Args:
            token: target id whose embedding is read.
            feature: (h,) feature of the token before.
            position: rotary position.
            seen: what the row attends to besides itself.
        """
        config, state, name = self.config, self.state, "midlayer.self_attn."
        embedding = self._norm(self.table[token], "midlayer.input_layernorm.weight")
        normed = self._norm(feature, "midlayer.hidden_norm.weight")
        pair = torch.cat([embedding, normed])
        shape = (-1, config.head_dim)
        query = self._rotated((state[name + "q_proj.weight"] @ pair).reshape(shape), position)
        key = self._rotated((state[name + "k_proj.weight"] @ pair).reshape(shape), position)
        value = (state[name + "v_proj.weight"] @ pair).reshape(shape)
        seen = [*seen, (key, value)]
        repeats = config.num_attention_heads // config.num_key_value_heads
        keys = torch.stack([k for k, _ in seen]).repeat_interleave(repeats, dim=1)
        values = torch.stack([v for _, v in seen]).repeat_interleave(repeats, dim=1)
        scores = torch.einsum("hd,nhd->hn", query, keys) / math.sqrt(config.head_dim)
        mixed = torch.einsum("hn,nhd->hd", scores.softmax(-1), values)
        start = normed if config.norm_before_residual else feature
        x = start + state[name + "o_proj.weight"] @ mixed.reshape(-1)
        inner = self._norm(x, "midlayer.post_attention_layernorm.weight")
        gate = state["midlayer.mlp.gate_proj.weight"] @ inner
        up = state["midlayer.mlp.up_proj.weight"] @ inner
        x = x + state["midlayer.mlp.down_proj.weight"] @ (gate * torch.sigmoid(gate) * up)
        return x, (key, value)

    def log_probabilities(self, output: torch.Tensor) -> list[float]:
        """Draft log-probabilities of the next token, by draft id."""
        logits = self.state["lm_head.weight"] @ self._norm(output, "norm.weight")
        return (logits - torch.logsumexp(logits, 0)).tolist()

    def stable_rows(
        self, tokens: list[int], features: torch.Tensor
    ) -> tuple[torch.Tensor, list[KeyValue]]:
        """The last row's output and all keys and values after reading committed tokens.

        Args:
            tokens: the tokens after those whose features are given.
            features: (n, 3k).
        """
        seen: list[KeyValue] = []
        for position, token in enumerate(tokens):
            output, key_value = self.row(token, self.feature(features[position]), position, seen)
            seen.append(key_value)
        return output, seen


@dataclass
class Node:
    """A candidate of the tree; `parent` is None for the children of the root."""

    token: int
    score: float
    parent: "Node | None"
    source: torch.Tensor
    output: torch.Tensor | None = None
    key_value: KeyValue | None = None
    path: list["Node"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path = [*(self.parent.path if self.parent else []), self]


@dataclass
class ReferenceTree:
    """The chosen nodes in verification order without the root, and how narrow the choices were.

    Attributes:
        nodes: T - 1 nodes.
        smallest_gap: least difference of two scores whose order mattered.
    """

    nodes: list[Node]
    smallest_gap: float

    def rows(self) -> list[tuple[int, int, frozenset[int]]]:
        """Token, row of the parent and visible rows of every node, the root being row 0."""
        row_of = {id(node): row for row, node in enumerate(self.nodes, start=1)}
        return [
            (
                node.token,
                row_of[id(node.parent)] if node.parent else 0,
                frozenset([0, *(row_of[id(ancestor)] for ancestor in node.path)]),
            )
            for node in self.nodes
        ]


def grow_reference_tree(
    head: Float64Head,
    tokens: list[int],
    features: torch.Tensor,
    total_tokens: int,
    depth: int,
    top_k: int,
) -> ReferenceTree:
    """The dynamic tree of EAGLE-2 (section 4) over an EAGLE-3 head, after committed tokens.

    Args:
        head: the head.
        tokens: committed tokens from the second one on; the last is the tree's root.
        features: (len(tokens), 3k) features of the committed tokens without the root.
        total_tokens: nodes of the tree, the root included.
        depth: rounds of expansion.
        top_k: width of the frontier and children per node.
    """
    gaps = [math.inf]

    def best(scores: list[float], count: int, *, ordered: bool) -> list[int]:
        order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
        kept = range(count) if ordered else [count - 1]
        gaps.extend(
            scores[order[i]] - scores[order[i + 1]] for i in kept if 0 <= i < len(order) - 1
        )
        return order[:count]

    def children(parent: Node | None, output: torch.Tensor) -> list[Node]:
        log_probabilities = head.log_probabilities(output)
        start = parent.score if parent else 0.0
        return [
            Node(head.target_ids[i], start + log_probabilities[i], parent, output)
            for i in best(log_probabilities, top_k, ordered=True)
        ]

    output, stable = head.stable_rows(tokens, features)
    pool = frontier = children(None, output)
    for round_index in range(depth):
        candidates: list[Node] = []
        for node in frontier:
            seen = stable + [ancestor.key_value for ancestor in node.path[:-1]]
            position = len(stable) + round_index
            node.output, node.key_value = head.row(node.token, node.source, position, seen)
            candidates += children(node, node.output)
        pool = pool + candidates
        if round_index + 1 < depth:
            scores = [node.score for node in candidates]
            frontier = [candidates[i] for i in best(scores, top_k, ordered=True)]
    chosen = best([node.score for node in pool], total_tokens - 1, ordered=False)
    return ReferenceTree([pool[i] for i in sorted(chosen)], min(gaps))
