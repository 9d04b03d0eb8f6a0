"""Running the application on a port until it is stopped."""

from __future__ import annotations

import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from eaglerl.server.app import create_app
from eaglerl.server.connections import ConnectionLimits, protocol_with
from eaglerl.server.service import Service

# Seconds that streams have after Ctrl-C to finish the cycle at work and send their last event.
_SHUTDOWN_SECONDS = 10
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


class _Server(uvicorn.Server):
    """A server that ends the streams before it waits for their connections."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.engine.stop_soon()
        await super().shutdown(sockets)


def is_local(host: str) -> bool:
    """Return whether an address can be reached only from this machine."""
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
        service: the service.
        host: address to listen on; a local address accepts only local names in ``Host``.
        port: port to listen on; 0 takes a free one.
        api_key: see `create_app`.
        on_ready: called with the URL once connections are accepted.
        listener: socket from `listen` for the same address; it is closed at the end.
        connections: limits of the connections.

    Raises:
        OSError: the server cannot listen on the address.
    """
    listener = listener or listen(host, port)
    try:
        server = _Server(server_config(service, host, api_key, connections), service)
        if on_ready is not None:
            shown = f"[{host}]" if ":" in host else host
            # The socket already listens: connections wait until the loop runs.
            on_ready(f"http://{shown}:{listener.getsockname()[1]}")
        with _sigterm_like_ctrl_c():
            server.run(sockets=[listener])
    except KeyboardInterrupt:
        # uvicorn raises the signal again after it has stopped.
        pass
    finally:
        listener.close()


@contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    """Turn SIGTERM into KeyboardInterrupt, unless the program has a handler of its own.

    uvicorn raises the signal again after it has stopped, and SIGTERM's default would end the
    process before the caller has kept what was learned.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def server_config(
    service: Service,
    host: str = "127.0.0.1",
    api_key: str | None = None,
    connections: ConnectionLimits | None = None,
) -> uvicorn.Config:
    """Make uvicorn's configuration; see `run_server`."""
    limits = connections or ConnectionLimits()
    hosts = {*_LOCAL_NAMES, host} if is_local(host) else None
    return uvicorn.Config(
        create_app(service, api_key=api_key, hosts=hosts),
        http=protocol_with(limits),
        # No WebSockets.
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        # uvicorn passes it on to `call_later`, which takes fractions of a second.
        timeout_keep_alive=limits.idle_seconds,  # type: ignore[arg-type]
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )


def listen(host: str, port: int) -> socket.socket:
    """Bind and listen on an address; connections wait until the server runs.

    The socket is bound here because uvicorn exits the program if binding fails.

    Raises:
        OSError: the address is not available.
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
        raise OSError(f"cannot listen on {host}, port {port}: {reason}") from error
    return listener
