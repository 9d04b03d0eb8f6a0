"""A Ray cluster: units of work go out as tasks, and their results come back in order."""

from __future__ import annotations

import importlib.util
import os
import pickle
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

_U = TypeVar("_U")
_R = TypeVar("_R")
_S = TypeVar("_S")

# Times that a unit is done again after its worker was killed or its node was lost.
_RETRIES = 5
# Units under way or waiting to be given out in order, for each worker. Units take different times,
# so that with fewer a worker would be idle while the oldest unit is being done.
_UNITS_PER_WORKER = 4
# What a worker must know of the environment of the command. A local cluster inherits all of it.
_VARIABLES = ("HF_HUB_OFFLINE", "EAGLERL_CACHE", "XDG_CACHE_HOME")


def check_ray_extra(what: str = "--ray") -> None:
    """Check that Ray is installed.

    Args:
        what: what needs it.

    Raises:
        ImportError: it is not; the message names the extra.
    """
    if importlib.util.find_spec("ray") is None:
        raise ImportError(f"{what} needs ray: install the extra with pip install 'eaglerl[ray]'")
    # Ray reports its use to its makers unless this is set before it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


class Cluster:
    """The nodes of a cluster that this process is connected to.

    Attributes:
        threads: CPU threads of a worker, which is the number of CPUs that a unit reserves.
    """

    def __init__(self, threads: int | None = None) -> None:
        """Look at the nodes.

        Args:
            threads: CPU threads of a worker; by default the CPUs of the smallest node that has any.

        Raises:
            ValueError: no node has as many CPUs.
        """
        counts = node_cpus()
        self.threads = threads or min(counts, default=1)
        self._counts = [count for count in counts if count >= self.threads]
        if not self._counts:
            most = max(counts, default=0)
            raise ValueError(
                f"threads must be at most the CPUs of a node of the cluster, {most}, got "
                f"{self.threads}"
            )

    def __str__(self) -> str:
        nodes, threads = len(self._counts), self.threads
        return (
            f"a Ray cluster of {nodes} node{'s' * (nodes > 1)}, with {threads} "
            f"thread{'s' * (threads > 1)} for each worker"
        )

    @contextmanager
    def one_per_node(self) -> Iterator[Any]:
        """Reserve room for one unit on every node; yield it as the argument `nodes` of `map`.

        It is given back when the block ends.
        """
        import ray

        bundles = [{"CPU": self.threads}] * len(self._counts)
        group = ray.util.placement_group(bundles, strategy="STRICT_SPREAD")
        try:
            yield group
        finally:
            ray.util.remove_placement_group(group)

    def map(
        self,
        function: Callable[[_S, _U], _R],
        shared: _S,
        units: Iterable[_U],
        *,
        nodes: Any = None,
    ) -> Generator[_R, None, None]:
        """Yield `function(shared, unit)` of every unit, in their order.

        The units of a worker that is killed are done again. Units that are under way when the
        generator is closed go on until they are done or the connection ends; nothing comes of them.

        Args:
            function: a function of a module that the nodes have as well.
            shared: first argument of every call; sent once.
            units: second arguments, taken as workers become free.
            nodes: from `one_per_node`: a node does one unit at a time, however many CPUs it has.

        Raises:
            Exception: what `function` raised.
            RuntimeError: a unit's workers were killed again and again.
        """
        import ray

        workers = sum(count // self.threads for count in self._counts)
        placement: Any = "SPREAD"
        if nodes is not None:
            workers = len(self._counts)
            placement = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(nodes)
        task = ray.remote(_do).options(
            num_cpus=self.threads,
            max_retries=_RETRIES,
            scheduling_strategy=placement,
            name=function.__name__,
        )
        sent = ray.put(shared)
        running: deque[Any] = deque()
        waiting = iter(units)
        # None is cancelled at the end: if a task completes while it is, a check of Ray 2.60 fails
        # and ends this process ("Tried to complete task that was not pending").
        while True:
            for unit in _first(waiting, _UNITS_PER_WORKER * workers - len(running)):
                running.append(task.remote(function, self.threads, sent, unit))
            if not running:
                return
            result = _get(running[0])
            running.popleft()
            yield result


@contextmanager
def connected(address: str, threads: int | None = None) -> Iterator[Cluster]:
    """Connect to a cluster, unless this process is connected to one.

    Args:
        address: "local" for a cluster of this machine alone, which ends with the block; "auto" for
            the one that this machine belongs to; or an address such as ``ray://HOST:10001``.
        threads: see `Cluster`.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: there is no such cluster.
        ValueError: no node has as many CPUs as there are threads.
    """
    check_ray_extra()
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options["include_dashboard"] = False
    else:
        known = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        options["runtime_env"] = {"env_vars": known}
    with ExitStack() as stack:
        if not ray.is_initialized():
            try:
                ray.init(address=address, **options)
            except ConnectionError as error:
                message = f"there is no Ray cluster at {address!r}; `ray start --head` starts one"
                raise ConnectionError(message) from error
            stack.callback(ray.shutdown)
        yield Cluster(threads)


def node_cpus() -> list[int]:
    """Return the number of CPUs of every node that has any."""
    import ray

    counts = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return [count for count in counts if count]


def _do(function: Callable[[_S, _U], _R], threads: int, shared: _S, unit: _U) -> bytes:
    """Do a unit, on a worker, and return its result pickled."""
    import torch

    # Ray sets OMP_NUM_THREADS for the first task of a process, and leaves what was set before.
    torch.set_num_threads(threads)
    # Arrays that Ray passes on by itself cannot be written to.
    return pickle.dumps(function(shared, unit))


def _first(items: Iterator[_U], count: int) -> Iterator[_U]:
    """Take up to so many items."""
    for _, item in zip(range(count), items, strict=False):
        yield item


def _get(reference: Any) -> Any:
    """Wait for a result; raise what the function raised as it was raised."""
    import ray

    try:
        return pickle.loads(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise RuntimeError(
            f"a unit of work failed {_RETRIES + 1} times on the cluster: {error}"
        ) from error
