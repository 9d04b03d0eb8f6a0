"""Damage to files: of bytes, of JSON's values, of tensors, and of what stands in a file's place."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

#: Values of every type, on and beyond every edge.
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 1 << 20, 1 << 31, (1 << 31) - 1, 1 << 63, -(1 << 63),
    10**30, 0.0, 0.5, -0.5, 1.0, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"), "", "x",
    "0", "\x00", "../../etc/passwd", "/dev/zero", "model.safetensors.index.json", "a" * 5000, [],
    {}, [[]], [None], {"": {}}, [0] * 300, [[1, 2, 3]] * 50, {"a": [1]}, "null", "\ud800",
)  # fmt: skip


def files_of(folder: Path) -> list[Path]:
    """The files of an example, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damage(path: Path, draw: random.Random) -> str:
    """Damage one file, or put something else in its place.

    Returns:
        What was done.
    """
    kinds: list[Callable[[Path, random.Random], str]] = [_bytes, _place]
    # Twice as often where the damage goes deeper.
    if path.suffix in (".json", ".jsonl"):
        kinds += [_values] * 6
    if path.suffix == ".safetensors":
        kinds += [_tensors, _tensors, _metadata, _metadata]
    return draw.choice(kinds)(path, draw)


def _bytes(path: Path, draw: random.Random) -> str:
    data = bytearray(path.read_bytes())
    way = draw.choice(("cut", "cut", "empty", "flip", "flip", "insert", "random", "twice", "zeros"))
    where = draw.randrange(len(data) + 1)
    if way == "cut":
        data = data[:where]
    elif way == "empty":
        data = bytearray()
    elif way == "flip":
        for _ in range(draw.randint(1, 8)):
            # The beginning holds what says how the rest is to be read.
            place = draw.randrange(min(len(data), draw.choice((64, 1024, len(data)))) or 1)
            if data:
                data[place] = draw.randrange(256)
    elif way == "insert":
        data[where:where] = draw.randbytes(draw.randint(1, 40))
    elif way == "random":
        data = bytearray(draw.randbytes(draw.randint(1, 400)))
    elif way == "twice":
        data = data + data
    else:
        data[where : where + 16] = bytes(16)
    path.write_bytes(data)
    return f"bytes: {way} at {where}"


def _place(path: Path, draw: random.Random) -> str:
    way = draw.choice(
        ("gone", "folder", "pipe", "circle", "device", "link", "vast", "deep", "wide")
    )
    kept = path.read_bytes()
    path.unlink()
    if way == "folder":
        path.mkdir()
    elif way == "pipe":
        os.mkfifo(path)
    elif way == "circle":
        path.symlink_to(path.name)
    elif way == "device":
        path.symlink_to("/dev/zero")
    elif way == "link":
        elsewhere = path.with_name("elsewhere")
        elsewhere.write_bytes(kept)
        path.symlink_to(elsewhere)
    elif way == "vast":
        with path.open("wb") as file:
            file.write(kept)
            file.truncate(1 << 36)
    elif way == "deep":
        path.write_bytes(draw.choice((b"[", b'{"a":')) * 100_000)
    elif way == "wide":
        path.write_bytes(b"[" + b"[]," * 300_000 + b"0]\n")
    return f"place: {way}"


def _values(path: Path, draw: random.Random) -> str:
    """Damage a value of JSON, or of one line of it."""
    lines = path.suffix == ".jsonl"
    texts = path.read_text(encoding="utf-8").splitlines() if lines else [path.read_text("utf-8")]
    number = draw.randrange(len(texts))
    content, done = _changed(json.loads(texts[number]), draw)
    texts[number] = _dumped(content, draw)
    path.write_text("\n".join(texts) + "\n", encoding="utf-8", errors="surrogatepass")
    return f"values: {done}"


def _dumped(content: Any, draw: random.Random) -> str:
    text = json.dumps(content)
    if draw.random() < 0.05 and text.startswith("{") and len(text) > 2:
        # A key twice.
        key = next(iter(content))
        text = f'{{"{key}": null, {text[1:]}'
    if draw.random() < 0.03:
        text = text.replace("1", "1" * 6000, 1)
    return text


def _changed(content: Any, draw: random.Random) -> tuple[Any, str]:
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(content))
        if not places:
            return _value(draw), "all"
        holder, key = draw.choice(places)
        way = draw.choice(("value", "value", "value", "drop", "add", "more", "nest", "near"))
        if way == "value":
            holder[key] = _value(draw)
        elif way == "drop":
            del holder[key]
        elif way == "add" and isinstance(holder, dict):
            holder[draw.choice(("extra", "format", "", "a" * 300))] = _value(draw)
        elif way == "more" and isinstance(holder[key], list):
            holder[key] = holder[key] * draw.choice((0, 2, 100))
        elif way == "nest":
            holder[key] = [holder[key]]
        elif isinstance(holder[key], int | float):
            holder[key] = holder[key] * draw.choice((-1, 2, 1000, 10**9)) + draw.choice((0, 1, -1))
        last = f"{way} at {key!r}"
    if draw.random() < 0.02:
        return _value(draw), "all"
    return content, last


def _value(draw: random.Random) -> Any:
    # A list that is put into itself would have no end.
    return copy.deepcopy(draw.choice(_VALUES))


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    items = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content) if isinstance(content, list) else ()
    )  # fmt: skip
    for key, value in items:
        yield content, key
        yield from _places(value)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}


def _tensors(path: Path, draw: random.Random) -> str:
    tensors, metadata = _read(path)
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    way = draw.choice(
        ("drop", "rename", "dtype", "short", "flat", "scalar", "empty", "value", "value", "wide")
    )
    if way in ("drop", "rename"):
        del tensors[name]
        if way == "rename":
            tensors[draw.choice(("x", name + ".0", "model." + name, ""))] = tensor
    elif way == "dtype":
        kinds = (torch.float16, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool)
        tensors[name] = tensor.to(draw.choice(kinds))
    elif way == "short":
        tensors[name] = tensor[: max(0, len(tensor) - 1)].clone() if tensor.ndim else tensor
    elif way == "flat":
        tensors[name] = tensor.flatten()
    elif way == "scalar":
        tensors[name] = torch.tensor(1.0).to(tensor.dtype)
    elif way == "empty":
        tensors[name] = torch.zeros(0, dtype=tensor.dtype)
    elif way == "wide":
        tensors[name] = torch.cat([tensor.reshape(1, -1)] * 3)
    elif tensor.numel():
        tensor.view(-1)[draw.randrange(tensor.numel())] = _number(tensor.dtype, draw)
    save_file(tensors, path, metadata=metadata)
    return f"tensors: {way} of {name}"


def _number(dtype: torch.dtype, draw: random.Random) -> float | int:
    if dtype.is_floating_point:
        return draw.choice((0.0, 1.0, -1.0, 1e30, -1e30, float("nan"), float("inf"), 32767.0))
    value = draw.choice((0, 1, -1, 2, 100, 255, 32767, (1 << 31) - 1, -(1 << 31)))
    return int(torch.tensor(value).to(dtype))


def _metadata(path: Path, draw: random.Random) -> str:
    """Damage what the header says of the file, or of its tensors."""
    tensors, metadata = _read(path)
    if metadata and draw.random() < 0.8:
        name = draw.choice(sorted(metadata))
        try:
            content, done = _changed(json.loads(metadata[name]), draw)
            metadata[name] = _dumped(content, draw)
        except ValueError:
            done, metadata[name] = "text", draw.choice(("", "x", "\x00", "{"))
        save_file(tensors, path, metadata=metadata)
        return f"metadata: {done} of {name}"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, done = _changed(json.loads(data[8 : 8 + size]), draw)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    return f"header: {done}"


def copy_example(example: Path, folder: Path) -> None:
    """A fresh copy of an example; links and pipes of the one before are removed."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(example, folder)
