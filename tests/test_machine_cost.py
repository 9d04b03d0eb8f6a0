"""The cost table of this machine: measured once, found again, and never taken for another's."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from eaglerl.cli.app import app
from eaglerl.cli.machine_cost import kept_cost_path, machine_cost, measure_cost, measured_cost
from eaglerl.eagle3 import SpeculativeDecoder
from eaglerl.evaluation.machine import describe_machine
from eaglerl.rl import CostTable
from eaglerl.rl.policy_files import PolicyFiles

FAST = {"passes": 3, "longest_context": 400}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EAGLERL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def decoder(tiny_folders: SimpleNamespace) -> SpeculativeDecoder:
    return SpeculativeDecoder.from_pretrained(
        tiny_folders.target, tiny_folders.head, draft_dtype="float32"
    )


@pytest.fixture(scope="module")
def table(decoder: SpeculativeDecoder, tmp_path_factory: pytest.TempPathFactory) -> CostTable:
    return measure_cost(decoder, tmp_path_factory.mktemp("cost") / "new" / "cost.json", **FAST)


@pytest.fixture
def files(tmp_path: Path) -> PolicyFiles:
    """Where an acceptance policy could lie."""
    return PolicyFiles(tmp_path / "model.safetensors", is_acceptance=True)


def test_calibrate_keeps_what_the_others_find(
    tiny_folders: SimpleNamespace, decoder: SpeculativeDecoder
) -> None:
    assert machine_cost(None, decoder) is None
    options = ["--passes", "3", "--longest-context", "400", "--draft-dtype", "float32"]
    result = CliRunner().invoke(
        app, ["calibrate", *options, *tiny_folders.arguments], env={"TERM": "dumb"}
    )
    assert result.exit_code == 0, result.output
    kept = kept_cost_path(decoder)
    assert str(kept) in result.stderr.replace("\n", "")
    found = machine_cost(None, decoder)
    assert found == CostTable.from_json(kept)
    assert found.machine == describe_machine()


def test_the_name_depends_on_all_that_a_cycle_costs(
    decoder: SpeculativeDecoder, tiny_folders: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = kept_cost_path(decoder)
    assert kept_cost_path(decoder) == first
    folders = (tiny_folders.target, tiny_folders.head)
    names = {kept_cost_path(SpeculativeDecoder.from_pretrained(*folders, draft_dtype="int8"))}
    other = SpeculativeDecoder.from_pretrained(*folders, draft_dtype="float32")
    with torch.no_grad():
        other.head.fc.weight += 1
    names.add(kept_cost_path(other))
    monkeypatch.setattr("eaglerl.evaluation.machine.processor_name", lambda: "another")
    names.add(kept_cost_path(decoder))
    assert len(names | {first}) == 4


def test_a_given_table_comes_first(
    decoder: SpeculativeDecoder, table: CostTable, files: PolicyFiles, tmp_path: Path
) -> None:
    kept = kept_cost_path(decoder)
    kept.parent.mkdir(parents=True)
    table.to_json(kept)
    given = replace(table, machine="given")
    given.to_json(tmp_path / "given.json")
    assert machine_cost(tmp_path / "given.json", decoder) == given
    assert measured_cost(tmp_path / "given.json", decoder, files) == given
    given.to_json(tmp_path / "cost.json")
    assert machine_cost(None, decoder) == measured_cost(None, decoder, files) == table


def test_only_an_unknown_machine_is_measured(
    decoder: SpeculativeDecoder,
    table: CostTable,
    files: PolicyFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[Path] = []

    def measure(_: SpeculativeDecoder, output: Path) -> CostTable:
        measured.append(output)
        return table

    monkeypatch.setattr("eaglerl.cli.machine_cost.measure_cost", measure)
    assert measured_cost(None, decoder, replace(files, is_acceptance=False)) is None
    beside = replace(table, samples=7)
    beside.to_json(tmp_path / "cost.json")
    assert measured_cost(None, decoder, files) == beside
    assert measured == []
    replace(table, machine="another").to_json(tmp_path / "cost.json")
    assert measured_cost(None, decoder, files) == table
    (tmp_path / "cost.json").unlink()
    assert measured_cost(None, decoder, files) == table
    assert measured == [kept_cost_path(decoder)] * 2
