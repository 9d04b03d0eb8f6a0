"""Checkpoints of a draft head: reading three layouts of keys, checks of tensors, writing.

Keys, shapes and the vocabulary maps d2t and t2d are those of EAGLE-3 checkpoints: d2t holds the
offset ``target id - draft id`` of every draft id, t2d says which target ids are kept.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from eaglerl.eagle3.head.draft_config import Eagle3Config
from eaglerl.eagle3.head.weight_files import read_weight_folder
from eaglerl.files import atomic_path, exclusive_folder
from eaglerl.tensor_file import write_tensors

SAFETENSORS_NAME = "model.safetensors"


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a head's tensors under EAGLE's key names, whatever the layout of the files.

    ``model.`` prefixes are stripped, ``layers.0.`` becomes ``midlayer.``, and rotary buffers are
    dropped. A ``.bin`` file is read with ``weights_only=True``, so it cannot run code.

    Args:
        path: a folder with ``model.safetensors`` or ``pytorch_model.bin``, or the index of either.

    Returns:
        The tensors on the CPU, in the dtypes of the file.

    Raises:
        ValueError: there is no such file, it cannot be read, a tensor holds NaN or infinite
            values, or two keys mean the same tensor.
    """
    return _canonical_keys(read_weight_folder(path))


def complete_state_dict(
    state: Mapping[str, torch.Tensor],
    config: Eagle3Config,
    embed_tokens: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Add the tensors that some exporters leave out since they follow from others.

    Each of d2t and t2d determines the other; NVIDIA ModelOpt writes d2t alone. With
    ``tie_word_embeddings`` an absent ``lm_head.weight`` is the embedding table.

    Args:
        state: as `read_state_dict` returns.
        config: the head's configuration.
        embed_tokens: (V, h) table of the target, for heads without their own.

    Returns:
        A new mapping with all of them.

    Raises:
        ValueError: the given map is broken, ``lm_head`` is tied to a table of another size, or
            there is no table.
    """
    result = dict(state)
    if config.tie_word_embeddings and "lm_head.weight" not in result:
        result["lm_head.weight"] = _tied_lm_head(result, config, embed_tokens)
    d2t, t2d = result.get("d2t"), result.get("t2d")
    if not config.prunes_vocabulary or (d2t is None) == (t2d is None):
        return result
    if t2d is None:
        assert d2t is not None, "one of the two is there"
        _check_integer(d2t, (config.draft_vocab_size,))
        if not bool(d2t.any()):
            raise ValueError(
                "d2t is zero and t2d is missing although draft_vocab_size "
                f"{config.draft_vocab_size} is less than vocab_size {config.vocab_size}: the "
                "mapping was not loaded when the head was made"
            )
        target_ids = _target_ids(d2t.cpu().long(), config)
        if (
            len(d2t) > 1
            and bool((d2t.diff() > 0).all())
            and int(d2t[0]) >= 0
            and int(d2t[-1]) < config.vocab_size
        ):
            warnings.warn(
                "d2t is read as offsets, target id - draft id, and no t2d says whether it is: its "
                "numbers rise at every step, as ids would. If they are ids, subtract each one's "
                "index",
                stacklevel=4,
            )
        result["t2d"] = torch.zeros(config.vocab_size, dtype=torch.bool)
        result["t2d"][target_ids] = True
        return result
    if t2d.dtype != torch.bool or tuple(t2d.shape) != (config.vocab_size,):
        raise ValueError(
            f"t2d must be bool of shape {(config.vocab_size,)}, got {tuple(t2d.shape)} {t2d.dtype}"
        )
    kept = t2d.nonzero()[:, 0]
    result["d2t"] = kept - torch.arange(len(kept))
    return result


def check_state_dict(state: Mapping[str, torch.Tensor], config: Eagle3Config) -> None:
    """Check a head's tensors against its configuration.

    Args:
        state: as `read_state_dict` returns.
        config: the head's configuration.

    Raises:
        ValueError: a key is missing, unexpected, of the wrong shape or dtype, or d2t and t2d are
            not the two sides of one map. The message names the key.
    """
    shapes = expected_shapes(config)
    optional = set() if config.owns_embedding else {"embed_tokens.weight"}
    if not config.prunes_vocabulary:
        optional |= {"d2t", "t2d"}
    if "mask_hidden" in state:
        raise ValueError("mask_hidden belongs to a P-EAGLE head, which is not supported")
    missing = sorted(set(shapes) - optional - set(state))
    unexpected = sorted(set(state) - set(shapes))
    if missing or unexpected:
        raise ValueError(
            f"the checkpoint's keys do not fit its config.json: missing {missing}, "
            f"unexpected {unexpected}"
        )
    for key, tensor in state.items():
        if tuple(tensor.shape) != shapes[key]:
            raise ValueError(f"{key} must have shape {shapes[key]}, got {tuple(tensor.shape)}")
        if key not in ("d2t", "t2d") and not tensor.is_floating_point():
            raise ValueError(f"{key} must be floating point, got {tensor.dtype}")
    check_vocabulary_maps(state.get("d2t"), state.get("t2d"), config)


def expected_shapes(config: Eagle3Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that a head may have, by key."""
    hidden, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    key_value = config.num_key_value_heads * config.head_dim
    features = 3 * config.feature_hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (hidden, features),
        "midlayer.self_attn.q_proj.weight": (heads, 2 * hidden),
        "midlayer.self_attn.k_proj.weight": (key_value, 2 * hidden),
        "midlayer.self_attn.v_proj.weight": (key_value, 2 * hidden),
        "midlayer.self_attn.o_proj.weight": (hidden, heads),
        "midlayer.mlp.gate_proj.weight": (config.intermediate_size, hidden),
        "midlayer.mlp.up_proj.weight": (config.intermediate_size, hidden),
        "midlayer.mlp.down_proj.weight": (hidden, config.intermediate_size),
        "midlayer.hidden_norm.weight": (hidden,),
        "midlayer.input_layernorm.weight": (hidden,),
        "midlayer.post_attention_layernorm.weight": (hidden,),
        "norm.weight": (hidden,),
        "lm_head.weight": (config.draft_vocab_size, hidden),
        "embed_tokens.weight": (config.vocab_size, hidden),
        "d2t": (config.draft_vocab_size,),
        "t2d": (config.vocab_size,),
    }
    if config.fc_norm:
        shapes |= {f"fc_norm.{i}.weight": (config.feature_hidden_size,) for i in range(3)}
    if config.qk_norm:
        names = ("q_norm", "k_norm")
        shapes |= {f"midlayer.self_attn.{name}.weight": (config.head_dim,) for name in names}
    if config.norm_before_fc:
        shapes["input_norm.weight"] = (features,)
    return shapes


def check_vocabulary_maps(
    d2t: torch.Tensor | None, t2d: torch.Tensor | None, config: Eagle3Config
) -> None:
    """Check that d2t and t2d describe one strictly increasing map of draft ids to target ids.

    Args:
        d2t: (Vd,) integer offsets, or None.
        t2d: (V,) bool membership, or None.
        config: the head's configuration.

    Raises:
        ValueError: an invariant does not hold; the message names d2t or t2d.
    """
    if d2t is not None:
        _check_integer(d2t, (config.draft_vocab_size,))
    if t2d is not None and t2d.dtype != torch.bool:
        raise ValueError(f"t2d must be bool, got {t2d.dtype}")
    if config.prunes_vocabulary:
        if d2t is None or t2d is None:
            raise ValueError("d2t and t2d are needed: draft_vocab_size is less than vocab_size")
        _check_pruning_maps(d2t.cpu().long(), t2d.cpu(), config)
        return
    if d2t is not None and bool(d2t.any()):
        raise ValueError("d2t must be zero when draft_vocab_size equals vocab_size")
    if t2d is not None and not bool(t2d.all()):
        raise ValueError("t2d must be all true when draft_vocab_size equals vocab_size")


def write_checkpoint(
    path: str | Path,
    config: Eagle3Config,
    state: Mapping[str, torch.Tensor],
    *,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Write ``config.json`` and ``model.safetensors`` in EAGLE's layout.

    Each file appears complete or not at all. The folder is created if missing.

    Args:
        path: the folder.
        config: the head's configuration.
        state: its tensors under EAGLE's key names.
        data: the content of ``config.json``; by default the configuration's ``to_dict()``.

    Raises:
        ValueError: the tensors do not fit the configuration.
        AlreadyLockedError: another process is writing into the folder.
    """
    check_state_dict(state, config)
    folder = Path(path)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    text = json.dumps(config.to_dict() if data is None else dict(data), indent=2) + "\n"
    with exclusive_folder(folder):
        write_tensors(folder / SAFETENSORS_NAME, tensors, {"format": "pt"})
        with atomic_path(folder / "config.json") as temporary:
            temporary.write_text(text, encoding="utf-8")


def _check_pruning_maps(d2t: torch.Tensor, t2d: torch.Tensor, config: Eagle3Config) -> None:
    if not bool(d2t.any()) and bool(t2d.all()):
        raise ValueError(
            "d2t and t2d are the identity although draft_vocab_size "
            f"{config.draft_vocab_size} is less than vocab_size {config.vocab_size}: the mapping "
            "was not loaded when the head was made"
        )
    kept = int(t2d.sum())
    if kept != config.draft_vocab_size:
        raise ValueError(
            f"t2d must keep draft_vocab_size = {config.draft_vocab_size} target ids, got {kept}"
        )
    target_ids = _target_ids(d2t, config)
    left_out = (~t2d[target_ids]).nonzero()
    if len(left_out):
        first = int(left_out[0])
        raise ValueError(
            f"d2t maps draft id {first} to target id {int(target_ids[first])}, which t2d leaves out"
        )


def _target_ids(d2t: torch.Tensor, config: Eagle3Config) -> torch.Tensor:
    """Return the (Vd,) target id of every draft id, checked."""
    target_ids = torch.arange(config.draft_vocab_size) + d2t
    if not bool((target_ids.diff() > 0).all()):
        raise ValueError("d2t must give strictly increasing target ids: it holds offsets, not ids")
    lowest, highest = int(target_ids[0]), int(target_ids[-1])
    if lowest < 0 or highest >= config.vocab_size:
        raise ValueError(
            f"d2t must give target ids in 0..{config.vocab_size - 1}, got {lowest}..{highest}"
        )
    return target_ids


def _check_integer(d2t: torch.Tensor, shape: tuple[int, ...]) -> None:
    if d2t.is_floating_point() or d2t.is_complex() or d2t.dtype == torch.bool:
        raise ValueError(f"d2t must be of an integer dtype, got {d2t.dtype}")
    if tuple(d2t.shape) != shape:
        raise ValueError(f"d2t must have shape {shape}, got {tuple(d2t.shape)}")


def _tied_lm_head(
    state: Mapping[str, torch.Tensor], config: Eagle3Config, embed_tokens: torch.Tensor | None
) -> torch.Tensor:
    if config.prunes_vocabulary:
        raise ValueError(
            "lm_head.weight is missing and cannot be tied to the embedding: tie_word_embeddings is "
            f"true, but the table has vocab_size = {config.vocab_size} rows and lm_head "
            f"draft_vocab_size = {config.draft_vocab_size}"
        )
    table = state.get("embed_tokens.weight", embed_tokens)
    if table is None:
        raise ValueError(
            "lm_head.weight is missing and tied to the embedding (tie_word_embeddings is true), "
            "which the checkpoint does not hold either: give the target's table as embed_tokens"
        )
    # A copy: a head that is trained further must not change the target's table.
    return table.detach().clone()


def _canonical_keys(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    result: dict[str, torch.Tensor] = {}
    for given, tensor in state.items():
        key = given.removeprefix("model.")
        if key.endswith("rotary_emb.inv_freq"):
            continue
        if key.startswith("layers."):
            number, _, rest = key.removeprefix("layers.").partition(".")
            if number != "0":
                raise ValueError(
                    f"{given} belongs to a head of several layers (such as P-EAGLE's), which is "
                    "not supported"
                )
            key = f"midlayer.{rest}"
        if key in result:
            raise ValueError(f"{given} and another key of the checkpoint both mean {key}")
        result[key] = tensor
    return result
