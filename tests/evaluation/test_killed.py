"""Comparisons that are killed at random moments lose nothing and repeat nothing."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from eaglerl.evaluation.records import load_comparison


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_every_question_is_there_once(tiny: SimpleNamespace, tmp_path: Path, kills: int) -> None:
    program = [sys.executable, str(Path(__file__).with_name("killed.py"))]
    arguments = [tiny.target, tiny.head, tiny.questions, tmp_path, kills, 0]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    ran = subprocess.run(
        [*program, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    died, status = map(int, ran.stdout.split())
    assert died >= kills // 2
    assert status == 0
    whole, killed = load_comparison(tmp_path / "whole"), load_comparison(tmp_path / "killed")
    expected = {record.key: record.output_ids for record in whole.records}
    assert len(expected) == 12 * 2 * 3
    # Reading refuses a question that is there twice.
    assert {record.key: record.output_ids for record in killed.records} == expected
    assert killed.missing == 0
    assert killed.manifest.modes["tuned"].trees is not None
