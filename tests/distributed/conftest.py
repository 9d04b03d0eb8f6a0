"""A cluster of two nodes on this machine, and the killing of its workers."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def one_killed(function: str) -> Iterator[None]:
    """Kill the first process that is seen to do a unit of the named function, at work on it."""
    stop = threading.Event()
    killed: list[int] = []

    def watch() -> None:
        while not killed and not stop.wait(0.002):
            killed.extend(_processes(f"ray::{function}")[:1])
        for process in killed:
            os.kill(process, signal.SIGKILL)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
    assert killed, "no worker was seen at work"


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
