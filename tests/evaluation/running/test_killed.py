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


@pytest.fixture(scope="module", params=[3, pytest.param(20, marks=pytest.mark.slow)])
def killed(
    request: pytest.FixtureRequest, tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of both works, made by one process: it takes eight seconds to import torch."""
    kills, folder = request.param, tmp_path_factory.mktemp("killed")
    program = [sys.executable, str(Path(__file__).with_name("killed.py"))]
    arguments = [tiny.target, tiny.head, tiny.questions, folder, kills, 0]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    ran = subprocess.run(
        [*program, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [f"{work} {kills} 0" for work in ("compare", "record")]
    return folder


def test_every_question_is_there_once(killed: Path) -> None:
    folder = killed / "compare"
    whole, resumed = load_comparison(folder / "whole"), load_comparison(folder / "killed")
    expected = {record.key: record.output_ids for record in whole.records}
    assert len(expected) == 12 * 2 * 3
    # Reading refuses a question that is there twice.
    assert {record.key: record.output_ids for record in resumed.records} == expected
    assert resumed.missing == 0
    assert resumed.manifest.modes["tuned"].trees is not None


def test_every_trace_is_there_once(killed: Path) -> None:
    folder = killed / "record"
    whole, resumed = TraceSet(folder / "whole"), TraceSet(folder / "killed")
    expected = {trace.prompt_id: trace for trace in whole}
    assert len(whole) == len(expected) == 80
    assert sorted(trace.prompt_id for trace in resumed) == sorted(expected)
    for trace in resumed:
        for name in ("continuation_ids", "ranks", "lookup_accepted"):
            np.testing.assert_array_equal(
                getattr(trace, name), getattr(expected[trace.prompt_id], name)
            )
    names = [{path.name for path in (folder / run).iterdir()} for run in ("whole", "killed")]
    assert names[0] == names[1]
