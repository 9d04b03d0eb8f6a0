"""The server as a deployment of Ray Serve: the API of `eaglerl serve`, a replica on every node.

``serve run eaglerl.serve_ray:app`` takes its settings from the environment, and
``serve run eaglerl.serve_ray:build precision=int8`` from its arguments as well. It needs the extra
``ray``.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from eaglerl.cli.serve_command import ServeSettings, default_mode, make_service
from eaglerl.cli.shared.parse_options import parse_tree
from eaglerl.distributed.cluster import check_ray_extra, node_cpus
from eaglerl.distributed.worker import for_nodes

check_ray_extra("eaglerl.serve_ray")

from ray import serve  # noqa: E402  # what is missing is reported first

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

#: Before the name of a setting, in capitals, in the environment: ``EAGLERL_MODEL``.
PREFIX = "EAGLERL_"
#: Settings of `eaglerl serve` that are Ray Serve's here.
_OF_RAY_SERVE = ("host", "port", "debug")
_OF_DEPLOYMENT = ("replicas", "max_ongoing_requests")
# Requests that Ray Serve gives a replica before it turns to one of another node: it prefers the
# node that received them. So many times `max_batch`, so that the next ones wait where they are
# decoded.
_ONGOING_REQUESTS = 2
# Seconds in which a replica that is stopped may finish its answers.
_SHUTDOWN_SECONDS = 60.0


class Replica:
    """One replica: a model and the engine that decodes with it."""

    def __init__(self, settings: ServeSettings) -> None:
        """Load the model.

        Args:
            settings: options of `eaglerl serve`.
        """
        self._settings = settings
        self._stack = ExitStack()
        self._service = make_service(settings, default_mode(settings), self._stack)

    def __serve_build_asgi_app__(self) -> FastAPI:  # Ray Serve's name
        """Return the application, which starts and stops the engine."""
        from eaglerl.server import create_app

        return create_app(self._service, api_key=self._settings.api_key)

    def check_health(self) -> None:
        """Fail if the engine no longer decodes: Ray Serve then replaces the replica.

        Raises:
            RuntimeError: it does not.
        """
        if not self._service.engine.healthy:
            raise RuntimeError("the engine is stopping or has failed: it no longer decodes")

    def __del__(self) -> None:
        """Keep what was learned, after the engine has stopped."""
        stack = getattr(self, "_stack", None)
        if stack is not None:
            stack.close()


def build(arguments: Mapping[str, Any]) -> Application:
    """Build the application; what Ray Serve calls an application builder.

    Args:
        arguments: options of `eaglerl serve` by name, such as ``{"precision": "int8"}``, before the
            environment's. ``replicas`` is their number: by default one for every node of the
            cluster, or one if there is no cluster yet. ``max_ongoing_requests`` is that of Ray
            Serve, twice `max_batch` by default.

    Raises:
        ValueError: an unknown argument, or a value of the wrong type.
    """
    given = {name.replace("-", "_"): value for name, value in arguments.items()}
    replicas, ongoing = (_number(name, given.pop(name, None)) for name in _OF_DEPLOYMENT)
    settings = read_settings(given)
    counts = [] if replicas and settings.threads else _cluster_cpus()
    threads = settings.threads or min(counts, default=os.cpu_count() or 1)
    replicas = replicas or max(1, sum(count >= threads for count in counts))
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="eaglerl",
        num_replicas=replicas,
        max_replicas_per_node=1,
        max_ongoing_requests=ongoing or _ONGOING_REQUESTS * settings.max_batch,
        # Ray gives a replica without CPUs of its own a single thread.
        ray_actor_options={"num_cpus": threads},
        graceful_shutdown_timeout_s=_SHUTDOWN_SECONDS,
    )
    return deployment.bind(for_nodes(settings, threads))


def read_settings(given: Mapping[str, Any]) -> ServeSettings:
    """Return the options of `eaglerl serve` from arguments, then from the environment.

    Args:
        given: values by name; texts are converted. `policies` takes several folders with ``:``
            between them.

    Raises:
        ValueError: an unknown name, or a value of the wrong type.
    """
    names = [field.name for field in dataclasses.fields(ServeSettings)]
    names = [name for name in names if name not in _OF_RAY_SERVE]
    for name in given:
        if name not in names:
            raise ValueError(
                f"an argument must be one of {[*_OF_DEPLOYMENT, *names]}, got {name!r}"
            )
    found: dict[str, Any] = {
        name: os.environ[PREFIX + name.upper()] for name in names if _is_set(name)
    }
    found |= given
    if isinstance(folders := found.get("policies"), str):
        found["policies"] = folders.split(os.pathsep)
    try:
        settings = TypeAdapter(ServeSettings).validate_python(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}, got {first['input']!r}") from None
    # Before a model is loaded on every node.
    parse_tree(settings.tree, plain=settings.plain)
    return settings


def _number(name: str, value: Any) -> int | None:
    """Return a number of the deployment, from the arguments or the environment.

    Raises:
        ValueError: it is no number from 1.
    """
    value = os.environ.get(PREFIX + name.upper()) if value is None else value
    if value is None:
        return None
    if not str(value).isdecimal() or int(value) < 1:
        raise ValueError(f"{name} must be a whole number from 1, got {value!r}")
    return int(value)


def _is_set(name: str) -> bool:
    return bool(os.environ.get(PREFIX + name.upper()))


def _cluster_cpus() -> list[int]:
    """Return the CPUs of the cluster's nodes; none if there is no cluster yet.

    `serve run` builds the application before it connects.
    """
    import ray

    if ray.is_initialized():
        return node_cpus()
    try:
        ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    except ConnectionError:
        return []
    try:
        return node_cpus()
    finally:
        ray.shutdown()


def __getattr__(name: str) -> Any:
    # Built when it is asked for: importing this module must not look for a cluster.
    if name == "app":
        return build({})
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
