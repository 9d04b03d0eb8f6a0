"""Rotary position embedding (RoPE): parameters from a config, tables of cos and sin, rotation.

RoFormer, https://arxiv.org/abs/2104.09864, in the "rotate half" layout of the LLaMA family.
"""

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import LlamaConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

# EAGLE's trainer has no option for the base: a head whose config names none was trained with this.
DEFAULT_ROPE_THETA = 10000.0

_REQUIRED_KEYS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
_NUMERIC_KEYS = (
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "original_max_position_embeddings",
)
_LAYER_TYPES = ("full_attention", "sliding_attention")
# Rows of the first table: most texts are shorter, so the table is made once. With heads 64 wide,
# cos and sin of 2048 positions take 512 KB.
_FIRST_ROWS = 2048


class ContradictingRopeError(ValueError):
    """Two places of a config contradict each other about RoPE."""


Angles = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""positions (P,) int64 -> cos and sin (P, D / 2) fp32."""


def read_rope_parameters(
    data: Mapping[str, Any], *, layer_type: str = "full_attention"
) -> dict[str, Any]:
    """Read RoPE's parameters from the fields of a model's config.

    Accepts transformers v5's ``rope_parameters`` and the older ``rope_theta`` with
    ``rope_scaling``, whose type is called ``rope_type`` or ``type``. Either may be given per type
    of layer.

    Args:
        data: the fields, all of which may be missing.
        layer_type: "full_attention" or "sliding_attention", where parameters are given per type.

    Returns:
        ``rope_type``, ``rope_theta`` (10000 if absent) and the other parameters of the type.

    Raises:
        ValueError: the type is unknown, a parameter is missing or malformed, or two places that
            say the same thing contradict each other.
    """
    notations = ("rope_parameters", "rope_scaling")
    names = [name for name in notations if data.get(name) not in (None, {})]
    read = {name: _read_notation(name, data, layer_type) for name in names}
    partial = data.get("partial_rotary_factor")
    if partial not in (None, 1.0):
        raise ValueError(f"partial_rotary_factor must be 1, got {partial!r}")
    if not read:
        return _complete("rope_parameters", {}, data)
    first, *others = names
    for name in others:
        _check_same(first, read[first], name, read[name])
    return read[first]


def rope_contradiction(data: Mapping[str, Any]) -> str | None:
    """Return a sentence on how RoPE's parameters contradict each other; None if they do not.

    Args:
        data: a config's fields, with any type of RoPE. Parameters that differ per type of layer are
            no contradiction.
    """
    nested = [data.get(name) for name in ("rope_parameters", "rope_scaling")]
    if any(isinstance(value, Mapping) and set(value) & set(_LAYER_TYPES) for value in nested):
        return None
    try:
        read_rope_parameters(data)
    except ContradictingRopeError as error:
        return str(error)
    except ValueError:
        # A type of RoPE that draft heads do not support.
        return None
    return None


class RopeTables:
    """Tables of cos and sin for the positions from 0 on, as long as was needed so far.

    A million positions of heads 128 wide take half a gigabyte (2 x 64 x 4 bytes each), so tables
    are not made for all positions of a model, but double when a sequence outgrows them. Several
    threads may ask at once; a table that was returned never changes.
    """

    def __init__(self, angles: Angles, *, device: torch.device | str = "cpu") -> None:
        """Set up without tables.

        Args:
            angles: returns cos and sin of any positions.
            device: where the tables are kept.
        """
        self._angles = angles
        self._device = device
        self._lock = threading.Lock()
        self._tables: tuple[torch.Tensor, torch.Tensor] | None = None

    @torch.no_grad()
    def first(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin of at least ``rows`` positions from 0, each (P, D / 2) fp32."""
        tables = self._tables
        if tables is not None and len(tables[0]) >= rows:
            return tables
        with self._lock:
            before = 0 if self._tables is None else len(self._tables[0])
            if before < rows:
                self._tables = self._grown(before, max(rows, 2 * before, _FIRST_ROWS))
            assert self._tables is not None
            return self._tables

    def _grown(self, before: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        # Only the new positions are computed: an angle depends on its own position alone.
        more = [table.to(self._device) for table in self._angles(torch.arange(before, rows))]
        if self._tables is None:
            return more[0].contiguous(), more[1].contiguous()
        old_cos, old_sin = self._tables
        return torch.cat((old_cos, more[0])), torch.cat((old_sin, more[1]))


def head_rope_tables(
    head_dim: int,
    rope_parameters: Mapping[str, Any],
    *,
    max_position_embeddings: int,
    device: torch.device | str = "cpu",
) -> RopeTables:
    """Return a draft head's tables, which grow with its sequences.

    The type "dynamic" keeps its frequencies beyond ``max_position_embeddings``. Only rows drafted
    past the end of a text can have such positions, since `check_rope_length` refuses longer texts.

    Args:
        head_dim: see `rope_tables`.
        rope_parameters: see `rope_tables`.
        max_position_embeddings: see `rope_tables`.
        device: where the tables are kept.

    Raises:
        ValueError: see `rope_tables`.
    """
    angles = _llama_angles(head_dim, rope_parameters, max_position_embeddings)
    return RopeTables(angles, device=device)


def check_rope_length(
    rope_parameters: Mapping[str, Any], rows: int, max_position_embeddings: int
) -> None:
    """Check that the frequencies of ``rows`` positions do not depend on the length.

    Raises:
        ValueError: the type is "dynamic" and there are more rows than the model was made for.
    """
    if rope_parameters.get("rope_type") == "dynamic" and rows > max_position_embeddings:
        raise ValueError(
            "max_positions must be at most max_position_embeddings with RoPE of type 'dynamic', "
            f"whose frequencies depend on the length beyond it; got {rows} and "
            f"{max_position_embeddings}"
        )


def rope_tables(
    head_dim: int,
    rope_parameters: Mapping[str, Any],
    max_positions: int,
    *,
    max_position_embeddings: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin of every rotary angle, scaled by the type's attention factor.

    The angles are transformers' own, to the last bit of fp32. More exact ones would move the logits
    away from transformers', which decoding has to reproduce.

    Args:
        head_dim: width D of a head, even.
        rope_parameters: as `read_rope_parameters` returns, or a transformers config's.
        max_positions: number P of positions, from 0.
        max_position_embeddings: positions that the model was made for; the "yarn", "llama3" and
            "dynamic" types read it.

    Returns:
        cos and sin, each (P, D / 2) fp32.

    Raises:
        ValueError: an argument is out of range, or the type is "dynamic" and its frequencies
            would change with the current length.
    """
    angles = _llama_angles(head_dim, rope_parameters, max_position_embeddings)
    if max_positions < 1:
        raise ValueError(f"max_positions must be at least 1, got {max_positions}")
    check_rope_length(rope_parameters, max_positions, max_position_embeddings)
    return angles(torch.arange(max_positions))


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the heads of ``x``: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin).

    Args:
        x: (..., H, D), the halves of D being x1 and x2.
        cos: (..., D / 2) of the row's position, the same leading dimensions as ``x`` without H.
        sin: like ``cos``.

    Returns:
        A tensor like ``x``.
    """
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(-2).to(x.dtype), sin.unsqueeze(-2).to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def module_angles(embedding: torch.nn.Module, head_dim: int) -> Angles:
    """Return the angles of a transformers rotary embedding whose frequencies never change.

    Raises:
        ValueError: it rotates only a part of a head's ``head_dim`` channels.
    """
    half = head_dim // 2
    # transformers repeats the D / 2 angles for both halves of a head: one copy is enough.
    like = torch.empty(0, dtype=torch.float32)

    def angles(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = embedding(like, positions[None])
        return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()

    width = embedding(like, torch.zeros(1, 1, dtype=torch.int64))[0].shape[-1]
    if width != head_dim:
        raise ValueError(f"its rotary embedding rotates {width} of {head_dim} channels of a head")
    return angles


def config_angles(config: PreTrainedConfig, head_dim: int) -> Angles:
    """Return the angles of a Llama-like model's rotary embedding, with its first frequencies.

    As transformers' `LlamaRotaryEmbedding` computes them, to the last bit: its module needs
    transformers' whole modelling code, which takes a second to import and 40 MB.

    Args:
        config: of the model, with ``rope_parameters``.
        head_dim: width D of a head.

    Raises:
        ValueError: only a part of a head's ``head_dim`` channels are rotated.
    """
    parameters = config.rope_parameters
    kind = parameters["rope_type"]
    if kind == "default":
        even = torch.arange(0, head_dim, 2, dtype=torch.float32)
        frequencies, scale = 1.0 / (parameters["rope_theta"] ** (even / head_dim)), 1.0
    else:
        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    if 2 * len(frequencies) != head_dim or parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            f"its rotary embedding rotates {2 * len(frequencies)} of {head_dim} channels of a head"
        )

    def angles(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        turned = positions[:, None].float() * frequencies
        return turned.cos() * scale, turned.sin() * scale

    return angles


def _llama_angles(
    head_dim: int, rope_parameters: Mapping[str, Any], max_position_embeddings: int
) -> Angles:
    parameters = read_rope_parameters({"rope_parameters": rope_parameters})
    if head_dim < 2 or head_dim % 2:
        raise ValueError(f"head_dim must be even and positive, got {head_dim}")
    config = LlamaConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        head_dim=head_dim,
        max_position_embeddings=max_position_embeddings,
        rope_parameters=parameters,
    )
    # "dynamic" would compute other frequencies beyond the model's length; `check_rope_length`
    # refuses such lengths, so the initial frequencies are the right ones throughout.
    return config_angles(config, head_dim)


def _read_notation(name: str, data: Mapping[str, Any], layer_type: str) -> dict[str, Any]:
    """Read ``data[name]``, completed from the fields beside it."""
    given = data[name]
    if not isinstance(given, Mapping):
        raise ValueError(f"{name} must be an object or null, got {given!r}")
    kinds = [kind for kind in _LAYER_TYPES if isinstance(given.get(kind), Mapping)]
    if not kinds:
        return _complete(name, given, data)
    beside = sorted(set(given) - set(_LAYER_TYPES))
    if beside:
        raise ValueError(
            f"{name} must be given either per type of layer or for all layers, got {beside} as well"
        )
    read = {kind: _complete(f"{name}.{kind}", given[kind], data) for kind in kinds}
    # transformers' Llama takes no parameters per type; speculators' trainer takes those of the
    # sliding layers, whatever the layer.
    if layer_type == "sliding_attention" and layer_type in read:
        return read[layer_type]
    for kind in kinds[1:]:
        _check_same(f"{name}.{kinds[0]}", read[kinds[0]], f"{name}.{kind}", read[kind])
    return read[kinds[0]]


def _complete(name: str, given: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Check one object of parameters, and add the fields beside it in the config."""
    parameters = {key: value for key, value in given.items() if value is not None}
    legacy_type = parameters.pop("type", None)
    rope_type = parameters.setdefault("rope_type", legacy_type or "default")
    if legacy_type is not None and legacy_type != rope_type:
        raise ContradictingRopeError(
            f"{name}.rope_type is {rope_type!r} but {name}.type is {legacy_type!r}"
        )
    if not isinstance(rope_type, str) or rope_type not in _REQUIRED_KEYS:
        allowed = list(_REQUIRED_KEYS)
        raise ValueError(f"{name}.rope_type must be one of {allowed}, got {rope_type!r}")
    _inherit(name, parameters, data)
    _check_values(name, parameters)
    return parameters


def _inherit(name: str, parameters: dict[str, Any], data: Mapping[str, Any]) -> None:
    """Add the fields beside ``data[name]``, which must not contradict those inside."""
    inherited = ["rope_theta"]
    if parameters["rope_type"] in ("llama3", "yarn"):
        inherited.append("original_max_position_embeddings")
    for key in inherited:
        beside = data.get(key)
        if beside is None:
            continue
        _check_positive(key, beside)
        if parameters.setdefault(key, beside) != beside:
            raise ContradictingRopeError(f"{key} is {beside} but {name}.{key} is {parameters[key]}")
    parameters.setdefault("rope_theta", DEFAULT_ROPE_THETA)


def _check_values(name: str, parameters: Mapping[str, Any]) -> None:
    rope_type = parameters["rope_type"]
    for key in ("rope_theta", *_REQUIRED_KEYS[rope_type]):
        _check_positive(f"{name}.{key}", parameters.get(key))
    for key in _NUMERIC_KEYS:
        if key in parameters:
            _check_positive(f"{name}.{key}", parameters[key])
    if rope_type == "llama3" and parameters["low_freq_factor"] >= parameters["high_freq_factor"]:
        raise ValueError(
            f"{name}.low_freq_factor must be less than {name}.high_freq_factor, got "
            f"{parameters['low_freq_factor']} and {parameters['high_freq_factor']}"
        )
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            f"partial_rotary_factor must be 1, got {parameters['partial_rotary_factor']!r}"
        )


def _check_same(
    first_name: str, first: Mapping[str, Any], second_name: str, second: Mapping[str, Any]
) -> None:
    for key in sorted(set(first) | set(second), key=lambda key: (key != "rope_type", key)):
        if first.get(key) != second.get(key):
            raise ContradictingRopeError(
                f"{first_name} and {second_name} contradict each other: {key} is "
                f"{first.get(key)!r} in the first and {second.get(key)!r} in the second; leave one "
                "of the two out"
            )


def _check_positive(name: str, value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
