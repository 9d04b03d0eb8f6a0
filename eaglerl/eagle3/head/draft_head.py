"""The EAGLE-3 draft head as a plain PyTorch module.

EAGLE-3, https://arxiv.org/abs/2503.01840. A row joins the features of token t with the embedding
of token t + 1, stands at rotary position t and predicts token t + 2.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from eaglerl.eagle3.head.draft_checkpoint import (
    check_state_dict,
    complete_state_dict,
    read_state_dict,
    write_checkpoint,
)
from eaglerl.eagle3.head.draft_config import Eagle3Config
from eaglerl.eagle3.head.draft_config_file import NormOutputConvention
from eaglerl.eagle3.head.feature_layers import AuxLayerConvention
from eaglerl.eagle3.layers.embedding import EmbeddingSource
from eaglerl.eagle3.layers.rope import apply_rope
from eaglerl.regular_file import naming

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(q (..., Hq, D), k (..., Hkv, D), v like k) -> (..., Hq, D); q and k are rotated."""


class RMSNorm(nn.Module):
    """Root mean square norm, computed in fp32 or wider; weight (hidden_size,)."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension of ``x`` (..., hidden_size)."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class _SelfAttention(nn.Module):
    """The attention's projections, whose input is embedding and feature side by side, 2h wide."""

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        width = 2 * config.hidden_size
        heads, key_value_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(width, heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(width, key_value_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(width, key_value_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(heads * config.head_dim, config.hidden_size, bias=False)
        eps = config.rms_norm_eps
        self.q_norm = RMSNorm(config.head_dim, eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, eps) if config.qk_norm else None

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, attention: Attention
    ) -> torch.Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        attended = attention(apply_rope(q, cos, sin), apply_rope(k, cos, sin), v)
        return self.o_proj(attended.flatten(-2))


class _MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class DraftLayer(nn.Module):
    """The only decoder layer of the head."""

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        self.norm_before_residual = config.norm_before_residual
        self.self_attn = _SelfAttention(config)
        self.mlp = _MLP(config)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        token_embeddings: torch.Tensor,
        hidden: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        attention: Attention,
    ) -> torch.Tensor:
        """Run the layer.

        Args:
            token_embeddings: (..., h) of the row's token.
            hidden: (..., h): `Eagle3DraftHead.reduce` of real features, or the feedback of the
                pass before.
            cos: (..., D / 2) of the row's rotary position; broadcasts.
            sin: like ``cos``.
            attention: the attention itself, which owns the KV cache and the mask.

        Returns:
            (..., h), the row's output before the final norm.
        """
        normed = self.hidden_norm(hidden)
        residual = normed if self.norm_before_residual else hidden
        pair = torch.cat((self.input_layernorm(token_embeddings), normed), dim=-1)
        residual = residual + self.self_attn(pair, cos, sin, attention)
        return residual + self.mlp(self.post_attention_layernorm(residual))


class Eagle3DraftHead(nn.Module):
    """An EAGLE-3 draft head; its parameters carry EAGLE's names.

    Attributes:
        config: the configuration.
        embedding_source: the target's table in another form than a tensor; None without one.
        owns_embedding: whether `save_pretrained` writes ``embed_tokens``.
        d2t: (Vd,) int64 buffer of offsets, None if the vocabulary is not pruned.
        t2d: (V,) bool buffer, None if the vocabulary is not pruned.
    """

    d2t: torch.Tensor | None
    t2d: torch.Tensor | None
    _embed_tokens: torch.Tensor | None

    def __init__(
        self, config: Eagle3Config, *, embed_tokens: torch.Tensor | EmbeddingSource | None = None
    ) -> None:
        """Make a head with random weights.

        Args:
            config: the configuration.
            embed_tokens: (V, h) table of the target, aliased, not copied.
        """
        super().__init__()
        self.config = config
        hidden, eps = config.hidden_size, config.rms_norm_eps
        features = 3 * config.feature_hidden_size
        self.fc = nn.Linear(features, hidden, bias=False)
        self.fc_norm = (
            nn.ModuleList(RMSNorm(config.feature_hidden_size, eps) for _ in range(3))
            if config.fc_norm
            else None
        )
        self.input_norm = RMSNorm(features, eps) if config.norm_before_fc else None
        self.midlayer = DraftLayer(config)
        self.norm = RMSNorm(hidden, eps)
        self.lm_head = nn.Linear(hidden, config.draft_vocab_size, bias=False)
        pruned = config.prunes_vocabulary
        offsets = torch.zeros(config.draft_vocab_size, dtype=torch.int64)
        self.register_buffer("d2t", offsets if pruned else None)
        self.register_buffer("t2d", torch.ones(config.vocab_size).bool() if pruned else None)
        self.register_buffer("_embed_tokens", None, persistent=False)
        self.embedding_source: EmbeddingSource | None = None
        self.owns_embedding = config.owns_embedding
        if embed_tokens is not None:
            self.set_embed_tokens(embed_tokens)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        config: Eagle3Config | None = None,
        feature_layers: Sequence[int] | None = None,
        embed_tokens: torch.Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        aux_layer_convention: AuxLayerConvention | None = None,
        norm_output_convention: NormOutputConvention | None = None,
    ) -> "Eagle3DraftHead":
        """Read a head in the layout of EAGLE, SpecForge or speculators.

        Args:
            path: a folder with ``config.json`` and the weights (safetensors or ``.bin``).
            config: the configuration, if ``config.json`` was read already; the arguments on how to
                read it are then unused.
            feature_layers: see `Eagle3Config.from_dict`.
            embed_tokens: (V, h) table of the target, used unless the checkpoint has its own;
                aliased, not copied.
            dtype: dtype of the parameters.
            aux_layer_convention: see `Eagle3Config.from_dict`.
            norm_output_convention: see `Eagle3Config.from_dict`.

        Returns:
            The head, in evaluation mode.

        Raises:
            ValueError: the configuration or a tensor is invalid; the message says how.
        """
        if config is None:
            config = Eagle3Config.from_pretrained(
                path,
                feature_layers=feature_layers,
                aux_layer_convention=aux_layer_convention,
                norm_output_convention=norm_output_convention,
            )
        with naming(f"the draft head {str(path)!r}"):
            state = complete_state_dict(read_state_dict(path), config, embed_tokens)
            check_state_dict(state, config)
        # `complete_state_dict` has given the head an LM head of its own.
        config = config.replace(tie_word_embeddings=False)
        own_table = state.pop("embed_tokens.weight", None)
        head = cls._from_state(config, state, dtype)
        if own_table is not None:
            head.set_embed_tokens(own_table.to(dtype))
            head.owns_embedding = True
        elif embed_tokens is not None:
            head.set_embed_tokens(embed_tokens)
        return head.eval()

    @classmethod
    def _from_state(
        cls, config: Eagle3Config, state: dict[str, torch.Tensor], dtype: torch.dtype
    ) -> "Eagle3DraftHead":
        """Make a head of checked tensors."""
        # On the meta device nothing is allocated: the head takes over the tensors themselves.
        with torch.device("meta"):
            head = cls(config)
        if not config.prunes_vocabulary:
            state.pop("d2t", None)
            state.pop("t2d", None)
        state = {
            key: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for key, tensor in state.items()
        }
        if config.prunes_vocabulary:
            state["d2t"] = state["d2t"].long()
        head.load_state_dict(state, strict=True, assign=True)
        return head

    def save_pretrained(self, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write the head in EAGLE's layout as ``config.json`` and ``model.safetensors``.

        Args:
            path: the folder; created if missing.
            dtype: dtype of the written parameters; None keeps them as they are.

        Raises:
            ValueError: d2t and t2d are unset or broken, or the head must own a table and has none.
        """
        state = {
            key: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
            for key, tensor in self.state_dict().items()
        }
        if self.owns_embedding and self.embed_tokens is not None:
            state["embed_tokens.weight"] = self.embed_tokens.to(dtype or self.embed_tokens.dtype)
        write_checkpoint(path, self.config, state)

    @property
    def embed_tokens(self) -> torch.Tensor | None:
        """(V, h) table of the target, or the head's own; None until given.

        A table that the target has in another form is expanded when first asked for; `embed` and
        the packed runner do without.
        """
        if self._embed_tokens is None and self.embedding_source is not None:
            self._embed_tokens = self.embedding_source.table().to(self.fc.weight.device)
        return self._embed_tokens

    @embed_tokens.setter
    def embed_tokens(self, table: torch.Tensor | None) -> None:
        self._embed_tokens, self.embedding_source = table, None

    @property
    def has_embedding(self) -> bool:
        """Whether the head has an embedding table."""
        return self._embed_tokens is not None or self.embedding_source is not None

    def set_embed_tokens(self, table: torch.Tensor | EmbeddingSource) -> None:
        """Set the embedding table (V, h), without copying it.

        Raises:
            ValueError: the table's shape does not fit the configuration.
        """
        expected = (self.config.vocab_size, self.config.hidden_size)
        if tuple(table.shape) != expected:
            raise ValueError(
                f"embed_tokens must have shape {expected} (vocab_size, hidden_size), got "
                f"{tuple(table.shape)}"
            )
        if isinstance(table, EmbeddingSource):
            self.embed_tokens, self.embedding_source = None, table
        else:
            self.embed_tokens = table.detach()

    def set_draft_vocabulary(self, target_ids: torch.Tensor) -> None:
        """Set d2t and t2d so that draft id i means the i-th smallest of ``target_ids``.

        Args:
            target_ids: (Vd,) distinct integer ids of the target's vocabulary, in any order.

        Raises:
            ValueError: the vocabulary is not pruned, or the ids are not Vd distinct ids below V.
        """
        config = self.config
        if not config.prunes_vocabulary:
            raise ValueError("target_ids cannot be set: draft_vocab_size equals vocab_size")
        used = torch.unique(target_ids.long())
        in_range = len(used) and int(used[0]) >= 0 and int(used[-1]) < config.vocab_size
        if len(used) != config.draft_vocab_size or len(target_ids) != len(used) or not in_range:
            raise ValueError(
                f"target_ids must be {config.draft_vocab_size} distinct ids in "
                f"0..{config.vocab_size - 1}, got {len(target_ids)} ids, {len(used)} distinct"
            )
        assert self.d2t is not None, "a head that prunes its vocabulary has both maps"
        assert self.t2d is not None, "a head that prunes its vocabulary has both maps"
        used = used.to(self.d2t.device)
        self.d2t.copy_(used - torch.arange(len(used), device=used.device))
        self.t2d.fill_(False)
        self.t2d[used] = True

    @property
    def draft_to_target(self) -> torch.Tensor | None:
        """(Vd,) int64 target id of every draft id; None if the two vocabularies are equal."""
        if self.d2t is None:
            return None
        return torch.arange(len(self.d2t), device=self.d2t.device) + self.d2t

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (..., h) of target token ids (...), in the head's dtype.

        Raises:
            ValueError: the head has no embedding table.
        """
        weight = self.fc.weight
        if self._embed_tokens is None and self.embedding_source is not None:
            return self.embedding_source.rows(token_ids.cpu()).to(weight)
        if self.embed_tokens is None:
            raise ValueError("embed_tokens is not set: the head needs the target's table")
        return nn.functional.embedding(token_ids, self.embed_tokens).to(weight.dtype)

    def reduce(self, features: torch.Tensor) -> torch.Tensor:
        """Map features (..., 3k), [low | mid | high], to the draft's width (..., h)."""
        if self.input_norm is not None:
            features = self.input_norm(features)
        if self.fc_norm is not None:
            chunks = features.chunk(3, dim=-1)
            normed = [norm(chunk) for norm, chunk in zip(self.fc_norm, chunks, strict=True)]
            features = torch.cat(normed, dim=-1)
        return self.fc(features)

    def feedback(self, output: torch.Tensor) -> torch.Tensor:
        """Return the feature (..., h) of the next draft pass from the layer's output."""
        return self.norm(output) if self.config.norm_feedback else output

    def logits(self, output: torch.Tensor) -> torch.Tensor:
        """Return draft logits (..., Vd) from the layer's output (..., h)."""
        return self.lm_head(self.norm(output) if self.config.norm_output else output)
