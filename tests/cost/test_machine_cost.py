"""The cost table of this machine: measured once, found again, and never taken for another's."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from eaglerl.cli.app import app
from eaglerl.cli.shared.machine_cost import (
    kept_cost_path,
    machine_cost,
    measure_cost,
)
from eaglerl.cost.cost_check import why_unusable
from eaglerl.cost.cost_table import CostError, CostTable
from eaglerl.eagle3 import SpeculativeDecoder
from eaglerl.evaluation.running.processor import describe_machine

FAST = {"passes": 3, "longest_context": 400}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EAGLERL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module", autouse=True)
def _busy() -> Iterator[None]:
    """Whatever the machine of the test is busy with; `tests/cost/test_cost.py` tests that."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("measure_cost", "cost_table"):
            patch.setattr(f"eaglerl.cost.{module}.why_unusable", lambda _: None)
        yield


@pytest.fixture(scope="module")
def decoder(tiny_folders: SimpleNamespace) -> SpeculativeDecoder:
    return SpeculativeDecoder.from_pretrained(
        tiny_folders.target, tiny_folders.head, draft_dtype="float32"
    )


@pytest.fixture(scope="module")
def table(
    _busy: None, decoder: SpeculativeDecoder, tmp_path_factory: pytest.TempPathFactory
) -> CostTable:
    return measure_cost(decoder, tmp_path_factory.mktemp("cost") / "new" / "cost.json", **FAST)


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
        other.draft_head.fc.weight += 1
    names.add(kept_cost_path(other))
    monkeypatch.setattr("eaglerl.evaluation.running.processor.processor_name", lambda: "another")
    names.add(kept_cost_path(decoder))
    assert len(names | {first}) == 4


def test_a_given_table_comes_first(
    decoder: SpeculativeDecoder, table: CostTable, tmp_path: Path
) -> None:
    kept = kept_cost_path(decoder)
    kept.parent.mkdir(parents=True)
    table.to_json(kept)
    given = replace(table, machine="given")
    given.to_json(tmp_path / "given.json")
    assert machine_cost(tmp_path / "given.json", decoder) == given
    assert machine_cost(None, decoder) == table


def test_a_machine_that_is_too_busy_keeps_no_table(
    tiny_folders: SimpleNamespace,
    decoder: SpeculativeDecoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def busy(*_: object, **options: object) -> CostTable:
        options["again"]("verifying 1 to 12 rows takes 0.0 s")
        raise ValueError("no cost table was made of 9 cycles: the machine was busy")

    monkeypatch.setattr("eaglerl.cost.measure_cost.calibrate", busy)
    result = CliRunner().invoke(app, ["calibrate", *tiny_folders.arguments], env={"TERM": "dumb"})
    said = result.stderr.replace("\n", " ")
    assert result.exit_code == 1
    assert "verifying 1 to 12 rows takes 0.0 s: the machine is busy, measuring more" in said
    assert "error: no cost table was made of 9 cycles" in said
    assert not list(kept_cost_path(decoder).parent.iterdir())


def test_an_unusable_table_is_refused_wherever_it_lies(
    decoder: SpeculativeDecoder,
    table: CostTable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eaglerl.cost.cost_table.why_unusable", why_unusable)
    nonsense = replace(table, error=CostError(0.3, 6.98, 0.0))
    given = tmp_path / "given.json"
    nonsense.to_json(given)
    refused = r"is unusable: .* more than 30 %, where at most 25 % are allowed"
    with pytest.raises(ValueError, match=rf"given\.json.*{refused}"):
        machine_cost(given, decoder)
    result = CliRunner().invoke(
        app,
        ["train-policy", "--traces", str(tmp_path), "--cost", str(given),
         "-o", str(tmp_path / "run")],
        env={"TERM": "dumb"},
    )  # fmt: skip
    assert result.exit_code == 1
    assert "is unusable" in result.stderr.replace("\n", " ")
    assert not (tmp_path / "run").exists()
    kept = kept_cost_path(decoder)
    kept.parent.mkdir(parents=True)
    nonsense.to_json(kept)
    with pytest.warns(UserWarning, match=refused):
        assert machine_cost(None, decoder) is None


@pytest.mark.parametrize(
    ("error", "warned"),
    [(CostError(0.02, 0.09, 0.0), False), (CostError(0.02, 0.34, -0.22), True),
     (CostError(0.08, 0.1, 0.0), True)],
)  # fmt: skip
def test_a_bad_fit_is_reported(
    decoder: SpeculativeDecoder,
    table: CostTable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    error: CostError,
    warned: bool,
) -> None:
    bad = replace(table, error=error)
    monkeypatch.setattr("eaglerl.cost.measure_cost.calibrate", lambda *_, **__: bad)
    assert measure_cost(decoder, tmp_path / "cost.json") == bad
    shown = " ".join(capsys.readouterr().err.split())
    assert ("warning: the table is off by" in shown) == warned
    if warned:
        assert f"up to {100 * error.worst:.0f} %" in shown
