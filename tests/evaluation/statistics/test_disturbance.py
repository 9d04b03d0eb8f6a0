"""A comparison says first what makes it worthless, and compares only what is whole."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from eaglerl.cli.app import app
from eaglerl.evaluation.report import Evidence
from eaglerl.evaluation.report.words import headlines
from eaglerl.evaluation.results.completeness import complete_part, lacking
from eaglerl.evaluation.results.record_schema import RecordSchema
from eaglerl.evaluation.results.records import Comparison, Record, load_comparison
from eaglerl.evaluation.statistics import disturbance
from eaglerl.evaluation.statistics.disturbance import busy_now, disturbances
from eaglerl.evaluation.statistics.summary import summarise
from eaglerl.json_file import parse_json

from ..made_up import made_up_record, write_comparison
from .test_statistics import made_comparison, made_record

TERMINAL = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
MODES = {
    "plain": ("plain", lambda _: 2.0),
    "tuned": ("tuned", lambda _: 1.0),
    "tree:4/1/2": ("tree:4/1/2", lambda _: 0.9),
}


def measured(change: Callable[[Record], Record] = lambda record: record) -> Comparison:
    """20 questions in two modes, on a machine of 2 processors."""
    records = [
        change(replace(made_record(mode, f"a/{number}"), load=1.9, processor_share=0.99))
        for number in range(20)
        for mode in ("plain", "tuned")
    ]
    comparison = made_comparison(records)
    return replace(comparison, manifest=replace(comparison.manifest, runs=({"processors": 2},)))


def test_a_quiet_machine_disturbs_nothing() -> None:
    assert disturbances(measured()) == ()
    # As one that was measured before any of it was written down.
    old = measured(lambda record: replace(record, load=50.0, processor_share=None))
    old = replace(old, manifest=replace(old.manifest, runs=({},)))
    assert disturbances(old) == ()


def test_load_is_told() -> None:
    few = measured(lambda record: replace(record, load=9.0 if record.question == "a/3" else 1.0))
    assert disturbances(few) == ()
    (said,) = disturbances(measured(lambda record: replace(record, load=7.9)))
    assert said == (
        "other programs were running: the load average was 7.9 in the median and up to 7.9, on 2 "
        "processors"
    )


def test_waiting_for_a_processor_is_told() -> None:
    (said,) = disturbances(measured(lambda record: replace(record, processor_share=0.5)))
    assert said == "the decoding thread had a processor for only 50 % of the time"


def stalled(record: Record) -> Record:
    """One answer of one mode had a cycle of 40 seconds in place of a third of one."""
    if (record.mode, record.question) != ("plain", "a/7"):
        return record
    (turn,) = record.turns
    cycles = replace(turn.cycles, verify_seconds=(1 / 3, 40.0, 1 / 3))
    return replace(record, turns=(replace(turn, cycles=cycles, decode_seconds=41.0),))


def test_stalls_are_told() -> None:
    (said,) = disturbances(measured(stalled))
    # 40 of 25 + 40 seconds, drafting included, and what it should have taken less.
    assert said == (
        "decoding stalled: 61 % of plain's time went to cycles that took more than 10 times as "
        "long as others like them"
    )


def test_the_start_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disturbance, "processors", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.4, 9.0, 9.0))
    assert busy_now() is None
    monkeypatch.setattr(os, "getloadavg", lambda: (3.2, 0.0, 0.0))
    said = busy_now()
    assert said is not None
    assert said.startswith("the load average is 3.2 on 2 processors: other programs are at work")


def test_only_what_all_modes_decoded_is_compared() -> None:
    records = [
        made_record(mode, f"a/{number}", seconds=seconds)
        for number in range(8)
        for mode, seconds in (("plain", 4.0), ("tuned", 2.0))
    ]
    # The last question of one mode is still to come, and of the other it took long.
    records[-2] = made_record("plain", "a/7", seconds=1000.0)
    comparison = made_comparison(records)
    unfinished = replace(comparison, records=comparison.records[:-1])
    assert lacking(unfinished) == {"tuned": 1}
    assert len(complete_part(unfinished).records) == 14
    summary = summarise(unfinished)
    plain, tuned = summary.modes
    assert (plain.records, tuned.records) == (7, 7)
    assert plain.tokens_per_second == pytest.approx(8 / 4)
    assert tuned.ratios["plain"].ratio == pytest.approx(2.0)
    assert not summary.preliminary
    assert summary.progress == (
        "7 of 8 questions are complete in every mode that has begun, and only these are compared; "
        "1 records are still missing (tuned lacks 1)"
    )


def test_too_few_questions_give_no_ratio() -> None:
    # Interrupted in the second question; the first is one that stalled.
    records = [made_record("plain", "a/0", seconds=80.0), made_record("tuned", "a/0")]
    records += [made_record(mode, f"a/{n}") for n in range(1, 9) for mode in ("plain", "tuned")]
    whole = made_comparison(records)
    summary = summarise(replace(whole, records=whole.records[:3]))
    assert summary.preliminary
    assert [mode.ratios for mode in summary.modes] == [{}, {}]
    assert summary.by_domain == {}
    found = summary.to_dict()
    assert list(found)[:2] == ["disturbed", "preliminary"]
    # With nothing whole, there is nothing to show.
    nothing = summarise(replace(whole, records=whole.records[:1] + whole.records[3:4]))
    assert nothing.modes == ()
    # A wrong output is one, though.
    wrong = made_record("tuned", "a/0", ids=range(1, 10))
    broken = replace(whole, records=(whole.records[0], wrong))
    assert [mode.failed for mode in summarise(broken).modes] == [False, True]
    # A small comparison that is finished has its ratios.
    small = made_comparison(records[:2])
    assert summarise(small).modes[1].ratios["plain"].ratio == pytest.approx(80.0)


def test_the_command_says_it_first(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    write_comparison(folder, MODES, domains=("a",), questions=8)
    shown = CliRunner().invoke(app, ["compare", str(folder)], env=TERMINAL)
    assert shown.exit_code == 0
    assert shown.stdout.lstrip().startswith("8 questions")
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    slow = json.loads(lines[0])
    slow["turns"][0]["cycles"]["verify_seconds"][3] = 50.0
    (folder / "records.jsonl").write_text(json.dumps(slow) + "\n" + "".join(lines[1:]))
    shown = CliRunner().invoke(app, ["compare", str(folder)], env=TERMINAL)
    assert shown.stdout.startswith("WORTHLESS as a measurement of speed: decoding stalled: ")
    assert "/ tuned" in shown.stdout
    # Interrupted in the second mode, and in the third.
    (folder / "records.jsonl").write_text("".join(lines[:18] + lines[32:33]))
    shown = CliRunner().invoke(app, ["compare", str(folder)], env=TERMINAL)
    assert shown.stdout.startswith("NOT A RESULT YET: 1 of 8 questions are complete")
    assert "/ tuned" not in shown.stdout
    found = json.loads(CliRunner().invoke(app, ["compare", str(folder), "--json"]).stdout)
    assert found["preliminary"]
    assert all(mode["ratios"] == {} for mode in found["modes"])
    too_few = r"needs 5 complete questions or more .*: 1 of 8 questions"
    with pytest.raises(ValueError, match=too_few):
        Evidence.read(folder)


def test_the_report_says_it_first(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    write_comparison(folder, MODES, domains=("a",), questions=8)
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    slow = json.loads(lines[0])
    slow["turns"][0]["cycles"]["verify_seconds"][3] = 50.0
    (folder / "records.jsonl").write_text(json.dumps(slow) + "\n" + "".join(lines[1:-1]))
    evidence = Evidence.read(folder)
    first, second, *_ = headlines(evidence, {})
    assert first.text.startswith("Worthless as a measurement of speed: decoding stalled")
    assert second.text.startswith("Preliminary: 8 of 8 questions are complete")
    assert len(evidence.by_mode["plain"]) == 15


def test_a_run_writes_down_how_busy_the_machine_was(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disturbance, "busy_now", lambda: "the load average is 9.9")
    command = ["compare", str(tmp_path / "c"), str(tiny.questions), "--mode", "plain"]
    options = ["--repeats", "1", "--per-file", "1", "-n", "4", "--draft-dtype", "float32"]
    result = CliRunner().invoke(app, [*command, *options, *tiny.arguments], env=TERMINAL)
    assert result.exit_code == 0, result.output
    said = result.stderr.splitlines()
    busy = said.index("warning: the load average is 9.9")
    assert not any("repeat 1" in line for line in said[:busy])
    comparison = load_comparison(tmp_path / "c")
    assert comparison.manifest.runs[0]["processors"] == disturbance.processors()
    assert all(0 < record.processor_share <= 1 for record in comparison.records)


def test_a_made_up_record_has_no_share_and_is_read() -> None:
    record = made_up_record("plain", "a", 1, 0, 1.0)
    content = parse_json(json.dumps(record.to_dict()), RecordSchema, "a record")
    assert Record.of_schema(content).processor_share is None
