"""The cluster that the option ``--ray`` names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from eaglerl.cli.shared.terminal import say

if TYPE_CHECKING:
    from eaglerl.distributed.cluster import Cluster


@contextmanager
def cluster_of(address: str | None, threads: int | None) -> Iterator[Cluster | None]:
    """Connect to a cluster; yield None without an address.

    Args:
        address: value of ``--ray``.
        threads: CPU threads of a worker; None for those of the smallest node.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: there is no such cluster.
        ValueError: no node has as many CPUs as there are threads.
    """
    if address is None:
        yield None
        return
    from eaglerl.distributed.cluster import connected

    with connected(address, threads) as cluster:
        say(str(cluster))
        yield cluster
