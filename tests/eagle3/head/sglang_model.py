"""SGLang's EAGLE-3 model class from its wheel, on layers of torch in place of SGLang's own.

SGLang itself needs a GPU. Its `llama_eagle3.py` is executed as it is; what it imports is replaced
by the layers below, which compute the same without tensor parallelism or a cache.
"""

import ast
import contextlib
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

MODELS = "sglang/srt/models"
RUNNER = "sglang/srt/model_executor/model_runner_components"


class Norm(nn.Module):
    """RMSNorm that adds the residual first, if there is one, and returns the sum as well."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(size)), eps

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        total = x if residual is None else x + residual
        normed = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + self.eps) * self.weight
        return normed if residual is None else (normed, total)


class Stacked(nn.Module):
    """A linear layer that is loaded in parts, by name or number."""

    def __init__(self, inputs: int, sizes: dict[Any, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(sum(sizes.values()), inputs))
        self.parts = dict(zip(sizes, self.weight.data.split(list(sizes.values())), strict=True))
        self.weight.weight_loader = self.load

    def load(self, parameter: nn.Parameter, loaded: torch.Tensor, part: Any) -> None:
        self.parts[part].copy_(loaded)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T


class Qkv(Stacked):
    def __init__(self, inputs: int, dim: int, heads: int, shared: int, **_: Any) -> None:
        super().__init__(inputs, {"q": dim * heads, "k": dim * shared, "v": dim * shared})
        self.sizes = [dim * heads, dim * shared, dim * shared]


class Attention(nn.Module):
    """Causal attention over the rows of one text, with rotary positions."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.total_num_heads = config.num_attention_heads
        self.total_num_kv_heads = config.num_key_value_heads
        self.theta = config.rope_parameters["rope_theta"]
        self.o_proj = nn.Linear(
            self.total_num_heads * self.head_dim, config.hidden_size, bias=False
        )

    def rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        half = self.head_dim // 2
        angles = positions[:, None] * self.theta ** (-torch.arange(half) / half)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        first, second = x[..., :half], x[..., half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, forward_batch: Any
    ) -> torch.Tensor:
        q, k, v = (
            part.unflatten(-1, (-1, self.head_dim))
            for part in self.qkv_proj(hidden_states).split(self.qkv_proj.sizes, -1)
        )
        q, k = self.rotate(q, positions), self.rotate(k, positions)
        groups = self.total_num_heads // self.total_num_kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / self.head_dim**0.5
        rows = len(positions)
        scores = scores.masked_fill(torch.ones(rows, rows).triu(1).bool(), -torch.inf)
        return self.o_proj(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1))


class Mlp(nn.Module):
    def __init__(self, hidden: int, inner: int, *_: Any) -> None:
        super().__init__()
        self.gate_up_proj = Stacked(hidden, {0: inner, 1: inner})
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(nn.functional.silu(gate) * up)


class Layer(nn.Module):
    def __init__(self, config: Any, *_: Any, **__: Any) -> None:
        super().__init__()
        self.hidden_size, self.self_attn = config.hidden_size, Attention(config)
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)


def load_eagle3(wheel: Path) -> types.ModuleType:
    """Execute `llama_eagle3.py` of a wheel, on the layers above."""
    parts = types.SimpleNamespace(speculative_draft_window_size=None, pp_group=None)
    names = {
        "configs.draft_parallel": {
            "DraftParallelSpec": lambda **_: None,
            "DraftTPExecution": types.SimpleNamespace(SINGLE_GROUP=None),
        },
        "runtime_context": {"get_spec": lambda: parts, "get_parallel": lambda: parts},
        "utils": {"add_prefix": lambda name, prefix: f"{prefix}.{name}"},
        "layers.layer_boundary": {"layer_stack": contextlib.nullcontext},
        "layers.layernorm": {"RMSNorm": Norm},
        "layers.linear": {"QKVParallelLinear": Qkv},
        "layers.logits_processor": {"LogitsProcessor": lambda config: None},
        "layers.quantization.base_config": {"QuantizationConfig": object},
        "layers.vocab_parallel_embedding": {
            "ParallelLMHead": lambda rows, width, **_: nn.Linear(width, rows, bias=False),
            "VocabParallelEmbedding": lambda rows, width, **_: nn.Embedding(rows, width),
        },
        "model_executor.forward_batch_info": {"ForwardBatch": object, "PPProxyTensors": object},
        "model_loader.weight_utils": {"default_weight_loader": lambda p, w: p.data.copy_(w)},
        "models.llama": {
            "LlamaDecoderLayer": Layer,
            "LlamaForCausalLM": nn.Module,
            "LlamaMLP": Mlp,
        },
    }
    made = {}
    for name, content in names.items():
        full = f"sglang.srt.{name}"
        made[full] = types.ModuleType(full)
        vars(made[full]).update(content)
        for depth in range(1, full.count(".") + 1):
            parent = ".".join(full.split(".")[:depth])
            made.setdefault(parent, types.ModuleType(parent)).__path__ = []
    module = types.ModuleType("llama_eagle3")
    before = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        exec(
            compile(read(wheel, f"{MODELS}/llama_eagle3.py"), "llama_eagle3", "exec"), vars(module)
        )
    finally:
        for name, old in before.items():
            if old is None:
                del sys.modules[name]
            else:
                sys.modules[name] = old
    return module


def captured_layers(wheel: Path, config: dict[str, Any], count: int) -> list[int]:
    """Return the layers whose inputs SGLang's Llama keeps, for a head's config.

    The ids are read as `spec_aux_hidden_state.py` reads them, which is checked in its source.
    """
    reader = read(
        wheel, "sglang/srt/model_executor/model_runner_components/spec_aux_hidden_state.py"
    )
    assert any(
        isinstance(node, ast.Subscript)
        and ast.unparse(node) == "eagle_config['eagle_aux_hidden_state_layer_ids']"
        for node in ast.walk(ast.parse(reader))
    )
    ids = config.get("eagle_config", {}).get("eagle_aux_hidden_state_layer_ids")
    (setter,) = [
        node
        for node in ast.walk(ast.parse(read(wheel, f"{MODELS}/llama.py")))
        if isinstance(node, ast.FunctionDef) and node.name == "set_eagle3_layers_to_capture"
    ]
    space: dict[str, Any] = {}
    exec(f"from typing import *\n{ast.unparse(setter)}", space)
    model = types.SimpleNamespace(
        pp_group=types.SimpleNamespace(is_last_rank=True),
        config=types.SimpleNamespace(num_hidden_layers=count),
        model=types.SimpleNamespace(),
    )
    space["set_eagle3_layers_to_capture"](model, ids)
    return list(model.model.layers_to_capture)


def read(wheel: Path, name: str) -> str:
    """Return a file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name).decode()
