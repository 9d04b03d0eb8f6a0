"""Reading JSON of others: what is refused, how it is said, and at what cost."""

import os
import socket
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from pydantic import Field, TypeAdapter
from safetensors.torch import save_file

from eaglerl.json_file import (
    Items,
    JsonObject,
    Schema,
    Size,
    VersionedSchema,
    check_json,
    parse_json,
    read_json,
    read_lines,
)
from eaglerl.regular_file import MissingFileError, read_regular
from eaglerl.tensor_file import check_finite, read_tensors


class Sample(Schema):
    size: Size
    times: Items[float] = ()
    free: JsonObject = Field(default_factory=dict)
    pair: tuple[int, int] | None = None


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


def test_what_fits_is_read(tmp_path: Path) -> None:
    file = tmp_path / "sample.json"
    file.write_text('{"size": 3, "times": [1, 2.5], "free": {"a": [null, "b"]}, "pair": [4, 5]}')
    sample = read_json(file, Sample, "sample")
    assert sample == Sample(size=3, times=(1.0, 2.5), free={"a": [None, "b"]}, pair=(4, 5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read: it is not valid JSON: EOF"),
        ("{", "cannot be read: it is not valid JSON: EOF"),
        ("[]", r"^the sample '.*' must be an object, got \[\]"),
        ('{"size": 1, "size": 2}', 'duplicate key "size"'),
        ('{"size": 1.0}', r"^'size' of the sample '.*' must be an integer, got 1.0"),
        ('{"size": true}', "'size' .* must be an integer, got True"),
        ('{"size": "1"}', "'size' .* must be an integer, got '1'"),
        ('{"size": 0}', "'size' .* must be at least 1, got 0"),
        ('{"size": 1e3}', "'size' .* must be an integer"),
        ('{"size": 99999999999}', "'size' .* must be at most 1048576, got 9999"),
        ('{"size": ' + "9" * 9999 + "}", "number out of range"),
        ('{"times": []}', "^the sample '.*' lacks 'size'"),
        ('{"size": 1, "sise": 2}', "^the sample '.*' has an unknown key 'sise'"),
        ('{"size": 1, "times": [0, "x", "y"]}', r"'times\[1\]' .* must be a number, got 'x'"),
        ('{"size": 1, "times": [NaN]}', "is not valid JSON"),
        ('{"size": 1, "times": [-Infinity]}', "is not valid JSON"),
        ('{"size": 1, "times": [1e999]}', r"'times\[0\]' .* must be a finite number, got inf"),
        ('{"size": 1, "free": {"a": [1e999]}}', "'free' .* must hold finite numbers, got inf"),
        ('{"size": 1, "free": ' + deep(100_000) + "}", "recursion limit"),
        ('{"size": 1, "pair": [1]}', r"lacks 'pair\[1\]'"),
        ('{"size": 1, "pair": [1, 2, 3]}', r"'pair' .* must have at most 2 items, not 3"),
        ('{"size": 1, "free": {"\\ud800": 1}}', "is not valid JSON"),
        ('{"size": "a", "pair": 3}', r"'size' .*, got 'a' \(and 1 more\)$"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "sample.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_json(file, Sample, "sample")
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(file))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "sample.json"
    file.write_bytes(b'{"size": 1, "free": {"a": "\xff"}}')
    with pytest.raises(ValueError, match="is not valid JSON: invalid unicode"):
        read_json(file, Sample, "sample")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket"))
        for name, kind in {
            "pipe": "pipe",
            "link": "pipe",
            "socket": "socket",
            "": "folder",
        }.items():
            with pytest.raises(ValueError, match=f"must be a regular file, got a {kind}"):
                read_json(tmp_path / name, Sample, "sample")
    with pytest.raises(ValueError, match="must be a regular file, got a device"):
        read_json("/dev/zero", Sample, "sample")
    with pytest.raises(ValueError, match=r"circle.* cannot be read: Too many levels"):
        read_json(tmp_path / "circle", Sample, "sample")
    with pytest.raises(ValueError, match="cannot be read: embedded null"):
        read_json("a\0b", Sample, "sample")


def test_a_missing_file_is_both_errors(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"the sample '.*none' cannot be read: no such file"):
        read_json(tmp_path / "none", Sample, "sample")
    assert issubclass(MissingFileError, ValueError)
    assert issubclass(MissingFileError, FileNotFoundError)


def test_a_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    """As in the caches of Hugging Face's hub."""
    (tmp_path / "blob").write_text('{"size": 1}')
    (tmp_path / "link.json").symlink_to("blob")
    assert read_json(tmp_path / "link.json", Sample, "sample").size == 1


def test_large_files_are_not_read(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as opened:
        opened.truncate(1 << 40)
    with pytest.raises(ValueError, match="at most 1,000 bytes, got 1,099,511,627,776"):
        read_regular(file, "sample", max_bytes=1000)
    # Files of the system say that they are empty.
    with pytest.raises(ValueError, match="at most 10 bytes, got 11"):
        read_regular("/proc/self/status", "sample", max_bytes=10)


@pytest.mark.parametrize(
    "text",
    [
        '{"size": 1, "times": [' + ",".join(['""'] * 300_000) + "]}",
        '{"size": 1, "free": ' + '{"a":' * 150_000 + "1" + "}" * 150_000 + "}",
        "{" + ",".join(f'"k{i}": 1' for i in range(70_000)) + "}",
    ],
)
def test_the_worst_files_cost_little(tmp_path: Path, text: str) -> None:
    file = tmp_path / "sample.json"
    file.write_text(text)
    tracemalloc.start()
    begin = time.process_time()
    with pytest.raises(ValueError, match="sample"):
        read_json(file, Sample, "sample")
    seconds, peak = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 5
    assert peak < 200e6


class Versioned(VersionedSchema):
    size: Size


def test_format_and_version_come_first(tmp_path: Path) -> None:
    file = tmp_path / "sample.json"
    for text, message in {
        '{"size": "x"}': 'the sample .* is none: "format" must be "f"',
        '{"format": "g", "version": 1}': 'is none: "format" must be "f"',
        '{"format": "f", "version": 2, "size": 1}': "version of the sample .* must be 1, got 2",
        '{"format": "f", "version": true, "size": 1}': "version of .* must be 1, got True",
        '{"format": "f", "version": 1}': "lacks 'size'",
    }.items():
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_json(file, Versioned, "sample", form=("f", 1))
    file.write_text('{"format": "f", "version": 1, "size": 1}')
    assert read_json(file, Versioned, "sample", form=("f", 1)).size == 1


def test_nan_is_read_where_python_wrote_it() -> None:
    floats = TypeAdapter(list[float])
    assert str(parse_json("[NaN, Infinity]", floats, "it", allow_nan=True)) == "[nan, inf]"


def test_values_are_checked_as_files_are() -> None:
    assert check_json({"size": 2, "pair": [1, 2]}, Sample, "it").pair == (1, 2)
    with pytest.raises(ValueError, match=r"'size' of it must be an integer, got 2.5"):
        check_json({"size": 2.5}, Sample, "it")
    with pytest.raises(ValueError, match="it must consist of JSON values"):
        check_json({"size": {1}}, Sample, "it")


def test_lines(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b'{"size": 1}\n\n  \n{"size": 2}\r\n{"si')
    lines = list(read_lines(file, "sample"))
    assert [(line.number, line.ended) for line in lines] == [(1, True), (4, True), (5, False)]
    assert parse_json(lines[1].data, Sample, lines[1].where).size == 2
    with pytest.raises(ValueError, match=r"line 5 of the sample .* is not valid JSON"):
        parse_json(lines[2].data, Sample, lines[2].where)
    file.write_bytes(b"1234\n12345\n123456\n")
    with pytest.raises(ValueError, match=r"line 3 of the sample .* must have at most 5 bytes"):
        list(read_lines(file, "sample", max_line_bytes=5))


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn]
)
def test_tensors_must_be_finite(dtype: torch.dtype) -> None:
    fine = torch.linspace(-3, 3, 30).reshape(5, 6).to(dtype)
    whole = {"a": fine, "b": torch.arange(3), "c": torch.zeros(0, 4), "d": fine.T}
    check_finite(whole, "it")
    broken = fine.float().clone()
    broken[4, 5] = float("nan")
    with pytest.raises(ValueError, match=r"^'e' of it must be finite"):
        check_finite(whole | {"e": broken.to(dtype)}, "it")


def test_tensor_files_are_regular(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "fine", metadata={"k": "v"})
    tensors, metadata = read_tensors(tmp_path / "fine", "sample")
    assert tensors["a"].tolist() == [1.0, 1.0]
    assert metadata == {"k": "v"}
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="got a pipe"):
        read_tensors(tmp_path / "pipe", "sample")
    (tmp_path / "broken").write_bytes((tmp_path / "fine").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"the sample .*broken' cannot be read"):
        read_tensors(tmp_path / "broken", "sample")
    with pytest.raises(MissingFileError):
        read_tensors(tmp_path / "none", "sample")


def test_a_file_of_tensors_is_no_longer_than_its_header_says(tmp_path: Path) -> None:
    file = tmp_path / "vast"
    save_file({"a": torch.ones(2)}, file)
    with file.open("ab") as opened:
        opened.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"vast' must have 72 bytes.* got 1,099,511,627,776"):
        read_tensors(file, "sample")
    with file.open("wb") as opened:
        opened.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"the header of the sample .*vast' cannot be read"):
        read_tensors(file, "sample")
