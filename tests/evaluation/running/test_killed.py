"""Comparisons and recordings that are killed at random moments lose nothing, repeat nothing."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from eaglerl.evaluation.results.records import load_comparison
from eaglerl.traces.trace_set import TraceSet

KILLS = pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])


def kill(work: str, tiny: SimpleNamespace, folder: Path, kills: int) -> None:
    program = [sys.executable, str(Path(__file__).with_name("killed.py"))]
    arguments = [work, tiny.target, tiny.head, tiny.questions, folder, kills, 0]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    ran = subprocess.run(
        [*program, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    died, status = map(int, ran.stdout.split())
    assert died == kills
    assert status == 0


@KILLS
def test_every_question_is_there_once(tiny: SimpleNamespace, tmp_path: Path, kills: int) -> None:
    kill("compare", tiny, tmp_path, kills)
    whole, killed = load_comparison(tmp_path / "whole"), load_comparison(tmp_path / "killed")
    expected = {record.key: record.output_ids for record in whole.records}
    assert len(expected) == 12 * 2 * 3
    # Reading refuses a question that is there twice.
    assert {record.key: record.output_ids for record in killed.records} == expected
    assert killed.missing == 0
    assert killed.manifest.modes["tuned"].trees is not None


@KILLS
def test_every_trace_is_there_once(tiny: SimpleNamespace, tmp_path: Path, kills: int) -> None:
    kill("record", tiny, tmp_path, kills)
    whole, killed = TraceSet(tmp_path / "whole"), TraceSet(tmp_path / "killed")
    expected = {trace.prompt_id: trace for trace in whole}
    assert len(whole) == len(expected) == 80
    assert sorted(trace.prompt_id for trace in killed) == sorted(expected)
    for trace in killed:
        for name in ("continuation_ids", "ranks", "lookup_accepted"):
            np.testing.assert_array_equal(
                getattr(trace, name), getattr(expected[trace.prompt_id], name)
            )
    names = [{path.name for path in Path(tmp_path / run).iterdir()} for run in ("whole", "killed")]
    assert names[0] == names[1]
