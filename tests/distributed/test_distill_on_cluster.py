"""Rows that a cluster writes are those of one machine, byte by byte."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from eaglerl.cli.app import app
from eaglerl.distributed.cluster import Cluster
from eaglerl.distributed.distill import distill_on
from eaglerl.training.distill import WriteRows, distill

from ..training.test_distill import target
from .conftest import one_killed

__all__ = ["target"]


def run(
    target: Path,
    output: Path,
    response_tokens: int,
    write: WriteRows | None = None,
) -> bytes:
    distill(
        target, output, response_tokens=response_tokens, slots=5, max_new_tokens=12,
        openings=("abc", "who"), write=write,
    )  # fmt: skip
    return output.read_bytes()


def test_files_are_equal(cluster: Cluster, target: Path, tmp_path: Path) -> None:
    """Those of one run, and of two runs of which the second continues."""
    write = distill_on(cluster, str(target))
    assert run(target, tmp_path / "a", 400) == run(target, tmp_path / "b", 400, write)
    assert run(target, tmp_path / "a", 700) == run(target, tmp_path / "b", 700, write)


def test_the_work_of_a_killed_worker_is_done_again(
    cluster: Cluster, target: Path, tmp_path: Path
) -> None:
    with one_killed("_write_unit"):
        there = run(target, tmp_path / "b", 900, distill_on(cluster, str(target)))
    assert there == run(target, tmp_path / "a", 900)


@pytest.mark.slow
def test_the_command(cluster: Cluster, target: Path, tmp_path: Path) -> None:
    options = ["--response-tokens", "100", "--slots", "4", "-n", "12", "--model", str(target)]
    for name, more in (("here", ["--threads", "1"]), ("there", ["--ray", "auto"])):
        result = CliRunner().invoke(app, ["distill", str(tmp_path / name), *options, *more])
        assert result.exit_code == 0, result.output
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()
