"""RoPE, the write to the KV cache, and attention of M rows over the cache, in one call."""

import torch
from torch import Tensor

from eaglerl._ext import C, thread_count
from eaglerl.ops._check import check_apart, check_contiguous, check_rows, check_tensor

_NO_BLOCK = (0, 0)
#: The numbers by which native code knows the dtypes of a KV cache.
CACHE_DTYPES: dict[torch.dtype, int] = {
    getattr(torch, name): number for name, number in C.cache_dtypes.items()
}


def cache_dtype_number(name: str, dtype: torch.dtype) -> int:
    """Return the number by which native code knows a dtype of a KV cache.

    Args:
        name: the argument, for the message.
        dtype: of the cache.

    Raises:
        TypeError: native code reads no caches of this dtype.
    """
    number = CACHE_DTYPES.get(dtype)
    if number is None:
        allowed = ", ".join(C.cache_dtypes)
        raise TypeError(f"{name} must be one of {allowed}, not {dtype}")
    return number


def _check_cache(key_cache: Tensor, value_cache: Tensor) -> int:
    """Return the number of the caches' dtype."""
    if not isinstance(key_cache, Tensor):
        raise TypeError(f"key_cache must be a tensor, not {type(key_cache).__name__}")
    number = cache_dtype_number("key_cache", key_cache.dtype)
    check_tensor("key_cache", key_cache, key_cache.dtype, 4)
    check_tensor("value_cache", value_cache, key_cache.dtype, 4)
    slots, kv_heads, capacity, head_dim = key_cache.shape
    if slots == 0 or kv_heads == 0 or capacity == 0:
        raise ValueError(
            "key_cache must have at least one slot, kv head and row, not shape "
            f"{tuple(key_cache.shape)}"
        )
    if value_cache.shape != key_cache.shape or value_cache.stride() != key_cache.stride():
        raise ValueError(
            "value_cache must be laid out as key_cache: "
            f"shapes {tuple(value_cache.shape)} and {tuple(key_cache.shape)}, "
            f"strides {value_cache.stride()} and {key_cache.stride()}"
        )
    if head_dim % 8 or not 8 <= head_dim <= C.max_head_dim:
        raise ValueError(f"head_dim must be a multiple of 8 up to {C.max_head_dim}, not {head_dim}")
    if key_cache.stride()[1:] != (capacity * head_dim, head_dim, 1):
        raise ValueError(
            "key_cache must be contiguous within a slot, "
            f"its shape is {tuple(key_cache.shape)}, its strides {key_cache.stride()}"
        )
    if slots > 1 and key_cache.stride(0) < kv_heads * capacity * head_dim:
        raise ValueError(
            f"key_cache must have slots that do not overlap, its strides are {key_cache.stride()}"
        )
    return number


def _query_heads(qkv: Tensor, kv_heads: int, head_dim: int) -> int:
    heads, rest = divmod(qkv.shape[1], head_dim)
    query_heads = heads - 2 * kv_heads
    if rest or query_heads <= 0 or query_heads % kv_heads:
        raise ValueError(
            f"qkv must have (query heads + 2 * {kv_heads}) * {head_dim} columns with query heads "
            f"a multiple of {kv_heads}, not {qkv.shape[1]}"
        )
    return query_heads


def _check_mask(mask: Tensor | None, block_length: int, rows: int) -> tuple[int, int]:
    """Return the mask's address and the number of words in a row."""
    if block_length < 0 or (block_length > 0) != (mask is not None):
        raise ValueError(
            "mask and block_length must be given together: block_length is "
            f"{block_length}, mask is {'given' if mask is not None else 'None'}"
        )
    if mask is None:
        return _NO_BLOCK
    check_tensor("mask", mask, torch.int64, 2)
    words = mask.shape[1]
    check_contiguous("mask", mask, torch.int64, (rows, words))
    if 64 * words < block_length:
        raise ValueError(f"mask has {64 * words} bits a row, block_length is {block_length}")
    return mask.data_ptr(), words


def _check_memory_apart(qkv: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
    check_apart("out", out, "qkv", qkv)
    slot_size = keys[0].numel()
    if keys.numel() == 0:
        return
    # A slot's keys, or values, are contiguous: slots are the rows of a matrix.
    caches = {
        "key_cache": keys.as_strided((keys.shape[0], slot_size), (keys.stride(0), 1)),
        "value_cache": values.as_strided((keys.shape[0], slot_size), (keys.stride(0), 1)),
    }
    for name, cache in caches.items():
        check_apart("out", out, name, cache)
        check_apart(name, cache, "qkv", qkv)
    check_apart("key_cache", caches["key_cache"], "value_cache", caches["value_cache"])
    if keys.data_ptr() == values.data_ptr():
        raise ValueError("key_cache and value_cache must not be the same memory")


def _head_weight(name: str, weight: Tensor | None, head_dim: int) -> int:
    if weight is None:
        return 0
    check_contiguous(name, weight, torch.float32, (head_dim,))
    return weight.data_ptr()


def cached_attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    positions: Tensor,
    cache_rows: Tensor,
    prefix_lengths: Tensor,
    *,
    slots: Tensor | None = None,
    mask: Tensor | None = None,
    block_length: int = 0,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 1e-6,
    scale: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Rotate queries and keys, write keys and values to the cache, and attend.

    Row r writes its rotated keys and its values to row ``cache_rows[r]`` of its slot. After all
    rows are written, row r attends to cache rows ``[0, prefix_lengths[r])`` and to every row
    ``prefix_lengths[r] + j``, ``j < block_length``, for which bit j of ``mask[r]`` is set. A causal
    chunk has no mask and ``prefix_lengths[r] = cache_rows[r] + 1``. The rows of a draft tree share
    a prefix length, and each has its ancestors and itself in the mask. A row that sees nothing
    gets zeros.

    Args:
        qkv: float32 (M, (query_heads + 2 * kv_heads) * head_dim): query, key, value heads of a
            row in this order; rows contiguous.
        cos: float32 (P, head_dim / 2), cosines of the rotary angles at every position.
        sin: the sines, in the same shape.
        key_cache: float32, bfloat16 or float16 (slots, kv_heads, capacity, head_dim) of one layer,
            contiguous within a slot; query_heads is a multiple of kv_heads, head_dim a multiple of
            8 up to 256. Keys and values are rounded when they are written, as ``to`` rounds them;
            everything else is computed in float32.
        value_cache: as ``key_cache``.
        positions: int32 (M,), rotary positions below P.
        cache_rows: int32 (M,), distinct within a slot.
        prefix_lengths: int32 (M,).
        slots: int32 (M,); default: slot 0 for all rows.
        mask: int64 (M, words), bit j % 64 of word j // 64.
        block_length: cache rows that the mask covers; 0 without a mask.
        query_norm: float32 (head_dim,), weight of an RMSNorm of every query head before the
            rotation (Qwen3); default: none.
        key_norm: the same for key heads.
        eps: epsilon of these norms.
        scale: factor of the scores; default ``head_dim ** -0.5``.
        out: float32 (M, query_heads * head_dim) to write to; rows contiguous.

    Returns:
        ``out``, or a new tensor (M, query_heads * head_dim).

    Raises:
        TypeError: if a tensor has the wrong dtype.
        ValueError: if a shape, device or stride does not fit, or an index is out of range. The
            cache is unchanged then.
    """
    qkv_stride = check_rows("qkv", qkv)
    cache_dtype = _check_cache(key_cache, value_cache)
    rows = qkv.shape[0]
    slot_count, kv_heads, capacity, head_dim = key_cache.shape
    query_heads = _query_heads(qkv, kv_heads, head_dim)
    check_tensor("cos", cos, torch.float32, 2)
    table_length = cos.shape[0]
    for name, table in (("cos", cos), ("sin", sin)):
        check_contiguous(name, table, torch.float32, (table_length, head_dim // 2))
    check_contiguous("positions", positions, torch.int32, (rows,))
    check_contiguous("cache_rows", cache_rows, torch.int32, (rows,))
    check_contiguous("prefix_lengths", prefix_lengths, torch.int32, (rows,))
    if slots is not None:
        check_contiguous("slots", slots, torch.int32, (rows,))
    mask_address, mask_words = _check_mask(mask, block_length, rows)
    if out is None:
        out = torch.empty(rows, query_heads * head_dim)
    out_stride = check_rows("out", out, query_heads * head_dim, written=True)
    if out.shape[0] != rows:
        raise ValueError(f"out must have {rows} rows, not shape {tuple(out.shape)}")
    _check_memory_apart(qkv, key_cache, value_cache, out)
    C.cached_attention(
        qkv.data_ptr(), qkv_stride, cos.data_ptr(), sin.data_ptr(), table_length,
        positions.data_ptr(), cache_rows.data_ptr(), 0 if slots is None else slots.data_ptr(),
        key_cache.data_ptr(), value_cache.data_ptr(), slot_count, key_cache.stride(0), capacity,
        cache_dtype, prefix_lengths.data_ptr(), mask_address, mask_words, block_length,
        _head_weight("query_norm", query_norm, head_dim),
        _head_weight("key_norm", key_norm, head_dim),
        eps, head_dim**-0.5 if scale is None else scale, out.data_ptr(), out_stride,
        rows, query_heads, kv_heads, head_dim, thread_count(),
    )  # fmt: skip
    return out


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _normed(heads: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if weight is None:
        return heads
    return heads * torch.rsqrt(heads.square().mean(-1, keepdim=True) + eps) * weight


def cached_attention_ref(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    positions: Tensor,
    cache_rows: Tensor,
    prefix_lengths: Tensor,
    *,
    slots: Tensor | None = None,
    mask: Tensor | None = None,
    block_length: int = 0,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 1e-6,
    scale: float | None = None,
) -> Tensor:
    """Compute `cached_attention` in plain torch, for any dtype and device."""
    rows = qkv.shape[0]
    _, kv_heads, capacity, head_dim = key_cache.shape
    heads = qkv.view(rows, -1, head_dim)
    query, key, value = heads.split([heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
    cos, sin = cos[positions.long()][:, None], sin[positions.long()][:, None]
    query = _rotate(_normed(query, query_norm, eps), cos, sin)
    where = torch.zeros_like(cache_rows) if slots is None else slots
    key = _rotate(_normed(key, key_norm, eps), cos, sin)
    key_cache[where.long(), :, cache_rows.long()] = key.to(key_cache.dtype)
    value_cache[where.long(), :, cache_rows.long()] = value.to(value_cache.dtype)
    visible = torch.arange(capacity, device=qkv.device) < prefix_lengths[:, None]
    if mask is not None:
        bits = torch.arange(block_length, device=qkv.device)
        seen = (mask[:, bits // 64] >> (bits % 64)) & 1
        for row, prefix in enumerate(prefix_lengths.tolist()):
            visible[row, prefix : prefix + block_length] |= seen[row].bool()
    group = query.shape[1] // kv_heads
    keys = key_cache[where.long()].to(qkv.dtype).repeat_interleave(group, dim=1)
    values = value_cache[where.long()].to(qkv.dtype).repeat_interleave(group, dim=1)
    scores = torch.einsum("rhd,rhcd->rhc", query, keys)
    scores = scores * (head_dim**-0.5 if scale is None else scale)
    weights = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1).nan_to_num(0.0)
    return torch.einsum("rhc,rhcd->rhd", weights, values).reshape(rows, -1)
