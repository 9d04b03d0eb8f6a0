"""Replay of the draft alone, at many positions of a known text at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.layers.rope import apply_rope, head_rope_tables
from eaglerl.ops import DraftTree, DraftTreeBuilder
from eaglerl.traces.rowwise_linear import RowwiseLinear

ReplayDtype = Literal["float32", "int8"]

# Rows per matrix product: enough to be bound by arithmetic, few enough for the processor's caches.
_ROWS = 1024
# Rows of a prompt in one pass.
_PROMPT_CHUNK = 256
# Most positions by which a drafted node follows the last row.
_MOST_ROUNDS = 64


class DraftReplay:
    """A draft head that runs at every position of a text whose continuation is known.

    Position i of a text has a tree whose root is token ``first + i``; its draft has a stable row
    for every token before the root. All positions share these rows, and their frontiers are
    expanded together, as many at a time as fill a product.

    No row's result depends on the rows that share its pass, so it does not matter how the live
    draft's rows were divided into passes.
    """

    def __init__(self, head: Eagle3DraftHead, dtype: ReplayDtype = "int8") -> None:
        """Pack a copy of the head's weights.

        Args:
            head: the head, on the CPU, with an embedding table.
            dtype: precision of the live draft's matrix products.

        Raises:
            ValueError: the head has no embedding table, or the dtype is unknown.
        """
        if dtype not in ("float32", "int8"):
            raise ValueError(f'dtype must be "float32" or "int8", got {dtype!r}')
        if not head.has_embedding:
            raise ValueError("head must have embed_tokens: give it the target's table")
        self.config = head.config
        self.dtype = dtype
        self._head = _packed_copy(head, dtype)
        self._draft_to_target = head.draft_to_target

    @torch.inference_mode()
    def start(self, token_ids: Sequence[int], features: torch.Tensor, first: int) -> ReplayText:
        """Compute the stable rows of a text.

        Args:
            token_ids: n tokens: the prompt, and the continuation up to the last root.
            features: (n - 1, 3k) float32 target features of all tokens but the last.
            first: index of the first root, 1 to n - 1; the tokens before it are the prompt.

        Returns:
            The text with its stable rows, n - first positions.

        Raises:
            ValueError: lengths do not match, or the text leaves the head's sliding window.
        """
        count = len(token_ids)
        width = 3 * self.config.feature_hidden_size
        if features.shape != (count - 1, width):
            raise ValueError(
                f"features must be (tokens - 1, 3k) = {(count - 1, width)}, got "
                f"{tuple(features.shape)}"
            )
        if not 1 <= first < count:
            raise ValueError(f"first must lie in 1..{count - 1}, got {first}")
        window = self.config.sliding_window
        if window is not None and count + _MOST_ROUNDS > window:
            raise ValueError(
                f"token_ids must be at most {window - _MOST_ROUNDS}: longer texts leave the head's "
                f"sliding window of {window} and are not replayed, got {count}"
            )
        return ReplayText(self._head, self._draft_to_target, token_ids, features, first)


class ReplayText:
    """The stable rows of one text, and the trees that grow from them.

    Attributes:
        reduced: (P, k) float32 output of the head's fc for the last token before each root.
        first_logits: (P, Vd) float32 draft logits of each position's first pass.
    """

    def __init__(
        self,
        head: Eagle3DraftHead,
        draft_to_target: torch.Tensor | None,
        token_ids: Sequence[int],
        features: torch.Tensor,
        first: int,
    ) -> None:
        self._head = head
        self._layer = head.midlayer
        self._draft_to_target = draft_to_target
        self._ids = torch.as_tensor(token_ids, dtype=torch.int64)
        self._first = first
        config = head.config
        self._groups = config.num_attention_heads // config.num_key_value_heads
        self._scale = config.head_dim**-0.5
        # A drafted node follows the last row by at most as many positions as there are rounds.
        self._cos, self._sin = head_rope_tables(
            config.head_dim,
            config.rope_parameters,
            max_position_embeddings=config.max_position_embeddings,
        ).first(len(token_ids) + _MOST_ROUNDS)
        self._take_in(features)

    @property
    def positions(self) -> int:
        """Number of roots P."""
        return len(self._ids) - self._first

    def _take_in(self, features: torch.Tensor) -> None:
        """Compute keys and values of all rows, and the first pass of every position."""
        reduced = self._head.reduce(features.float())
        prompt, count = self._first, len(self._ids) - 1
        pieces = []
        for begin, end in _chunks(prompt, _PROMPT_CHUNK):
            rows = torch.arange(begin, end)
            pieces.append(self._project(reduced[None, rows], self._ids[None, rows + 1], rows[None]))
        if count > prompt:
            rows = torch.arange(prompt, count)
            single = self._project(reduced[rows, None], self._ids[rows + 1, None], rows[:, None])
            pieces.append(single)
        # Of the prompt's rows only the last needs an output; from here on it is a group of one row.
        queries, keys, values, residuals = (
            torch.cat([piece[part].flatten(0, 1) for piece in pieces]) for part in range(4)
        )
        self._keys = keys.permute(1, 2, 0).contiguous()
        self._values = values.transpose(0, 1).contiguous()
        last = prompt - 1
        self.reduced = reduced[last:]
        attended = self._attend(queries[last:, None], torch.arange(self.positions))
        self._hidden, logits = self._finish(attended, residuals[last:, None])
        self.first_logits = logits[:, 0]

    def _project(
        self, hidden: torch.Tensor, token_ids: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return rotated q and k, v, and residual for hidden (G, R, h), ids and positions (G, R).

        Each of the G groups is a pass of its own.
        """
        layer, attention = self._layer, self._layer.self_attn
        normed = layer.hidden_norm(hidden)
        assert self._head.embed_tokens is not None  # checked by `DraftReplay`
        embeddings = self._head.embed_tokens[token_ids].float()
        pair = torch.cat((layer.input_layernorm(embeddings), normed), dim=-1)
        q, k, v = (
            product(pair).unflatten(-1, (-1, attention.head_dim))
            for product in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if attention.q_norm is not None:
            assert attention.k_norm is not None  # a head has both norms or neither
            q, k = attention.q_norm(q), attention.k_norm(k)
        cos, sin = self._cos[positions], self._sin[positions]
        residual = normed if layer.norm_before_residual else hidden
        return apply_rope(q, cos, sin), apply_rope(k, cos, sin), v, residual

    def _finish(
        self, attended: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return feedback (G, R, h) and logits (G, R, Vd) for attention outputs (G, R, Hq D)."""
        layer = self._layer
        x = residual + layer.self_attn.o_proj(attended)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self._head.feedback(x), self._head.logits(x)

    def _attend(
        self,
        queries: torch.Tensor,
        positions: torch.Tensor,
        scratch: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Attend from every group's rows to its stable rows and its own drafted rows.

        The stable rows are shared by all groups: the queries of all groups are multiplied with them
        in one product per KV head, and columns after a group's position are masked.

        Args:
            queries: (G, R, Hq, D).
            positions: (G,) position of each group.
            scratch: keys and values of the drafted rows (G, S, Hkv, D), and the mask of visible
                ones (G, R, S) bool.

        Returns:
            (G, R, Hq D).
        """
        count, rows = queries.shape[:2]
        key_value_heads, dim = self._keys.shape[:2]
        grouped = queries.unflatten(2, (key_value_heads, self._groups)).permute(2, 0, 1, 3, 4)
        flat = grouped.reshape(key_value_heads, -1, dim) * self._scale
        columns = self._first + int(positions.max())
        scores = (flat @ self._keys[..., :columns]).view(key_value_heads, count, -1, columns)
        hidden = torch.arange(columns) >= (self._first + positions)[:, None]
        scores.masked_fill_(hidden[None, :, None], -torch.inf)
        if scratch is not None:
            keys, values, visible = scratch
            own = flat.view(key_value_heads, count, -1, dim) @ keys.permute(2, 0, 3, 1)
            seen = visible.repeat_interleave(self._groups, dim=1)
            scores = torch.cat((scores, own.masked_fill_(~seen, -torch.inf)), dim=-1)
        weights = torch.softmax(scores, dim=-1)
        stable = weights[..., :columns].reshape(key_value_heads, -1, columns)
        attended = (stable @ self._values[:, :columns]).view(key_value_heads, count, -1, dim)
        if scratch is not None:
            attended += weights[..., columns:] @ values.permute(2, 0, 1, 3)
        attended = attended.unflatten(2, (rows, self._groups)).permute(1, 2, 0, 3, 4)
        return attended.reshape(count, rows, -1)

    @torch.inference_mode()
    def grow(self, top_k: int, depth: int) -> list[DraftTree]:
        """Grow the whole pool of candidates of every position.

        Args:
            top_k: K.
            depth: D, rounds after the first.

        Returns:
            P trees of 1 + K + D K^2 rows each: the root, then the candidates in the order of the
            rounds, so that the first 1 + K + d K^2 rows are the pool of depth d.
        """
        trees: list[DraftTree] = []
        for begin, end in _chunks(self.positions, max(1, _ROWS // top_k)):
            trees += self._grow_chunk(torch.arange(begin, end), top_k, depth)
        return trees

    def _grow_chunk(self, positions: torch.Tensor, top_k: int, depth: int) -> list[DraftTree]:
        count = len(positions)
        builders = [DraftTreeBuilder() for _ in range(count)]
        for builder, position in zip(builders, positions.tolist(), strict=True):
            builder.begin(int(self._ids[self._first + position]), top_k)
            builder.first(self.first_logits[position], self._draft_to_target)
        hidden = self._hidden[positions]
        keys = values = None
        for round_index in range(depth):
            frontiers = [builder.frontier() for builder in builders]
            token_ids, parents, masks = (
                torch.stack(parts) for parts in zip(*frontiers, strict=True)
            )
            hidden = hidden.gather(1, parents[..., None].expand(-1, -1, hidden.shape[-1]))
            rotary = (self._first + positions + round_index)[:, None].expand(-1, top_k)
            q, k, v, residual = self._project(hidden, token_ids, rotary)
            keys = k if keys is None else torch.cat((keys, k), dim=1)
            values = v if values is None else torch.cat((values, v), dim=1)
            # A mask row holds one bit per drafted row, 64 to an int64.
            bits = torch.arange(keys.shape[1])
            visible = (masks[..., bits // 64] >> (bits % 64) & 1).bool()
            attended = self._attend(q, positions, (keys, values, visible))
            hidden, logits = self._finish(attended, residual)
            for index, builder in enumerate(builders):
                builder.expand(logits[index], self._draft_to_target)
        size = 1 + top_k + depth * top_k**2
        return [builder.finish(size) for builder in builders]


def _chunks(count: int, size: int) -> list[tuple[int, int]]:
    return [(begin, min(begin + size, count)) for begin in range(0, count, size)]


def _packed_copy(head: Eagle3DraftHead, dtype: ReplayDtype) -> Eagle3DraftHead:
    """Return a copy of the head with packed matrix products."""
    copy = Eagle3DraftHead(head.config, embed_tokens=head.embed_tokens)
    copy.load_state_dict(head.state_dict())
    copy.requires_grad_(False).eval()
    attention, mlp = copy.midlayer.self_attn, copy.midlayer.mlp
    for parent, names in (
        (attention, ("q_proj", "k_proj", "v_proj", "o_proj")),
        (mlp, ("gate_proj", "up_proj", "down_proj")),
        (copy, ("lm_head", "fc")),
    ):
        for name in names:
            setattr(parent, name, RowwiseLinear(getattr(parent, name).weight, dtype))
    return copy
