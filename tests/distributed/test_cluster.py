"""What needs Ray says so without it, and clusters that do not do are refused."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eaglerl.cli.app import app
from eaglerl.distributed.cluster import Cluster, check_ray_extra

FOUND = importlib.util.find_spec


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ray" else FOUND(name)
    )


@pytest.mark.usefixtures("without_ray")
def test_commands_name_the_extra(tmp_path: Path) -> None:
    arguments = ["distill", str(tmp_path / "rows.jsonl"), "--ray", "auto"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "--ray needs ray: install the extra with pip install 'eaglerl[ray]'" in result.stderr
    assert [*tmp_path.iterdir()] == []


@pytest.mark.usefixtures("without_ray")
def test_the_deployment_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "eaglerl.serve_ray", raising=False)
    with pytest.raises(ImportError, match=r"eaglerl\.serve_ray needs ray: .*eaglerl\[ray\]"):
        importlib.import_module("eaglerl.serve_ray")


def test_what_was_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    check_ray_extra()
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    check_ray_extra()
    import os

    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


class TestUnits:
    def test_no_node_has_as_many_cpus(self, cluster: Cluster) -> None:
        with pytest.raises(ValueError, match="at most the CPUs of a node of the cluster, 1, got 2"):
            Cluster(2)

    def test_results_are_in_order_and_units_are_taken_as_needed(self, cluster: Cluster) -> None:
        taken = []

        def units() -> Iterator[int]:
            for number in range(10**9):
                taken.append(number)
                yield number

        results = cluster.map(pow, 3, units())
        assert [next(results) for _ in range(20)] == [3**number for number in range(20)]
        results.close()
        assert len(taken) < 40

    def test_an_error_is_that_of_the_function(self, cluster: Cluster) -> None:
        with pytest.raises(ZeroDivisionError):
            list(cluster.map(pow, 0, [1, 2, -1]))
