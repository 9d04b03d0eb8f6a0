"""Running the app on a port until it is told to stop."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

import uvicorn

from eaglerl.server.app import create_app
from eaglerl.server.connections import ConnectionLimits, protocol_with
from eaglerl.server.service import Service

# Seconds that streams have to end after Ctrl-C: the cycle at work, and their last words.
_SHUTDOWN_SECONDS = 10
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


class _Server(uvicorn.Server):
    """Ends the streams before it waits for their connections."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.engine.stop_soon()
        await super().shutdown(sockets)


def is_local(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def run_server(
    service: Service,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    on_ready: Callable[[str], None] | None = None,
    listener: socket.socket | None = None,
    connections: ConnectionLimits | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        service: what is served.
        host: address to listen at; a local one answers under local names alone.
        port: 0 takes a free one.
        api_key: see `create_app`.
        on_ready: told the address once connections are accepted.
        listener: what `listen` gave for the same address; it is closed in the end.
        connections: how many there may be, and how long they may take.

    Raises:
        OSError: the address cannot be had.
    """
    listener = listener or listen(host, port)
    try:
        server = _Server(server_config(service, host, api_key, connections), service)
        if on_ready is not None:
            shown = f"[{host}]" if ":" in host else host
            # The socket listens already: whoever connects now is answered when the loop runs.
            on_ready(f"http://{shown}:{listener.getsockname()[1]}")
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        # uvicorn raises the signal again when all is done; to stop is what it asked for.
        pass
    finally:
        listener.close()


def server_config(
    service: Service,
    host: str = "127.0.0.1",
    api_key: str | None = None,
    connections: ConnectionLimits | None = None,
) -> uvicorn.Config:
    """How uvicorn serves; see `run_server`."""
    limits = connections or ConnectionLimits()
    hosts = {*_LOCAL_NAMES, host} if is_local(host) else None
    return uvicorn.Config(
        create_app(service, api_key=api_key, hosts=hosts),
        http=protocol_with(limits),
        # Nothing is spoken but HTTP.
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )


def listen(host: str, port: int) -> socket.socket:
    """Take an address; whoever connects waits until the server runs.

    Bound here rather than by uvicorn, which would end the program where it fails.

    Raises:
        OSError: the address cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot listen at {host}, port {port}: {reason}") from error
    return listener
