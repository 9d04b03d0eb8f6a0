"""A cluster of two nodes on this machine, and the killing of its workers."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from eaglerl.distributed.cluster import Cluster, connected

#: Seconds after which a test gives up waiting.
PATIENCE = 120.0


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """eaglerl's cache folder on the nodes."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def address(cache: Path) -> Iterator[str]:
    """The address of a cluster of two nodes with one CPU each."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        # The nodes' processes inherit it.
        patch.setenv("EAGLERL_CACHE", str(cache))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster as LocalCluster

        head = {"num_cpus": 1, "include_dashboard": False}
        local = LocalCluster(initialize_head=True, head_node_args=head)
        local.add_node(num_cpus=1)
    yield local.address
    local.shutdown()


@pytest.fixture(scope="session")
def cluster(address: str) -> Iterator[Cluster]:
    """The cluster, connected to: commands use this connection, too, and its workers."""
    with connected(address) as cluster:
        yield cluster


@pytest.fixture
def kill() -> Callable[[str], None]:
    """Kill one process that is doing a unit of the named function."""

    def kill_one(function: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not (at_work := _processes(f"ray::{function}")):
            assert time.monotonic() < deadline, "no worker is doing a unit"
            time.sleep(0.002)
        os.kill(at_work[0], signal.SIGKILL)

    return kill_one


def _processes(title: str) -> list[int]:
    """The ids of this process's descendants with a title, which Ray sets to what they do."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "".join(process.cmdline()[:1]).startswith(title):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found
