"""Comparisons whose files are well formed and hold what cannot be."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from eaglerl.evaluation.results.records import load_comparison

from ..made_up import write_comparison

Change = Callable[[dict], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    modes = {"plain": ("plain", lambda _: 2.0), "tuned": ("tuned", lambda _: 1.0)}
    write_comparison(tmp_path / "it", modes, domains=("chat",), questions=2, repeats=1)
    return tmp_path / "it"


def cycles(record: dict) -> dict:
    return record["turns"][0]["cycles"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: r["turns"][0].update(prefill_seconds=-1.0),
            "prefill_seconds' .* at least 0.0, got -1",
        ),
        (lambda r: r["turns"][0].update(prefill_seconds=1e12), "prefill_seconds' .* below"),
        (lambda r: r["turns"][0].update(prefill_seconds=1e999), "is not valid JSON"),
        (lambda r: r["turns"][0].update(decode_seconds=0), "decode_seconds must be above 0"),
        (
            lambda r: r["turns"][0].update(decode_seconds="1"),
            "decode_seconds' .* a number, got '1'",
        ),
        (lambda r: r["turns"][0].update(output_ids=[3, -1]), r"output_ids\[1\]' .* at least 0"),
        (lambda r: r["turns"][0].update(output_ids=[3.0]), r"output_ids\[0\]' .* an integer"),
        (lambda r: r["turns"][0].update(output_ids=[]), "output_ids' .* at least 1 item"),
        (lambda r: r["turns"][0].update(output_ids=[1] * 99), "give the 98 tokens .* got 28"),
        (lambda r: r["turns"][0].update(finish_reason="tired"), "finish_reason' .* one of 'stop'"),
        (lambda r: r["turns"][0].update(prompt_tokens=0), "prompt_tokens' .* at least 1, got 0"),
        (lambda r: cycles(r)["tokens"].pop(), "equally long, got 13 tokens and 14"),
        (lambda r: cycles(r)["tokens"].__setitem__(2, 50), "at most its rows, got 50 and 4"),
        (lambda r: cycles(r)["lookup_accepted"].__setitem__(0, 9), "at most its lookup_tokens"),
        (lambda r: cycles(r)["verify_seconds"].__setitem__(0, -0.1), r"verify_seconds\[0\]'"),
        (lambda r: r.update(turns=[]), "'turns' .* at least 1 item"),
        (lambda r: r.update(repeat=1), "repeat of a record .* below 1, got 1"),
        (lambda r: r.update(run=4), "run of a record .* below 1, got 4"),
        (lambda r: r.update(mode="fast"), "is of 'fast', no mode of the manifest"),
        (lambda r: r.update(question="chat/9"), "is of 'chat/9', no question of the manifest"),
        (lambda r: r.update(question="code/0"), "must begin with its domain"),
        (lambda r: r.update(question="chat/1"), r"line 2 of the records .* repeats \('chat/1'"),
        (lambda r: r.update(extra=1), "unknown key 'extra'"),
    ],
)
def test_records_that_cannot_be(folder: Path, change: Change, message: str) -> None:
    path = folder / "records.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    change(records[0])
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(ValueError, match=message) as caught:
        load_comparison(folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["configuration"].update(repeats=0), "'configuration.repeats' .* at least 1"),
        (lambda m: m["configuration"].update(temperature=-1), "temperature' .* at least 0"),
        (lambda m: m["configuration"].pop("max_new_tokens"), "lacks 'configuration.max_new"),
        (lambda m: m["questions"].append(m["questions"][0]), "must be distinct, got 'chat/0'"),
        (lambda m: m["questions"][0].update(split="both"), r"questions\[0\].split' .* one of"),
        (lambda m: m["modes"]["tuned"].update(trees={"test": [9, 0, 1]}), "asks for 8 drafted"),
        (lambda m: m["modes"]["tuned"].update(trees={"test": [1 << 40, 0, 1]}), "at most 4096"),
        (lambda m: m.update(versions=3), "'versions' .* an object, got 3"),
        (lambda m: m["runs"][0].update(load=[1]), r"runs\[0\].load' .* at least 3 items"),
    ],
)
def test_manifests_that_cannot_be(folder: Path, change: Change, message: str) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=message) as caught:
        load_comparison(folder)
    assert str(path) in str(caught.value)
