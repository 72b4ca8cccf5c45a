"""Serves an application on a port until a signal, and then answers every accepted request."""

import asyncio
import contextlib
import ipaddress
import math
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from moecl_jax.errors import UserError
from moecl_jax.service.engine import Engine
from moecl_jax.service.keys import VARIABLE, Keys

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def bound_socket(host: str, port: int, keys: Keys) -> socket.socket:
    """A socket that is bound and does not listen yet, so that nobody connects to it.

    Args:
      host: name or address of an interface.
      port: number of the port; 0 for any that is free.
      keys: keys of the service, without which it is served on loopback alone.

    Raises:
      UserError: there are no keys elsewhere than on loopback, or the port cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(f"--host={host}: {error.strerror or error}") from error
    if not keys and not ipaddress.ip_address(address[0]).is_loopback:
        raise UserError(
            f"--host={host} is reached from other machines, and there are no keys; give "
            f"--keys=FILE or set {VARIABLE}, or leave --host out to serve this machine alone"
        )
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise UserError(
            f"port {port} of {host} cannot be had: {error.strerror}; choose another by --port"
        ) from error
    return found


def url_of(bound: socket.socket) -> str:
    """The address of a service on a socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: FastAPI, engine: Engine, bound: socket.socket, on_ready: Callable[[], None]) -> bool:
    """Serves until SIGINT or SIGTERM, and returns when every accepted request is answered.

    At the signal new requests get 503 and connections are closed as they are answered; a moment
    later the port is closed. A second SIGINT ends the service at once.

    Args:
      app: the application.
      engine: its engine, which was started; it is closed at the end.
      bound: what `bound_socket` gave.
      on_ready: is called when requests are accepted.

    Returns:
      Whether it ended by itself; False if a second SIGINT ended it.
    """
    limits = engine.limits
    config = uvicorn.Config(
        app,
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=math.ceil(limits.body_seconds + limits.answer_seconds) + 5,
    )
    server = _Server(config, engine, on_ready)
    try:
        server.run(sockets=[bound])
    finally:
        engine.close()
    return not server.force_exit


class _Server(uvicorn.Server):
    """A uvicorn server that refuses requests for a moment before it closes its port."""

    def __init__(self, config: uvicorn.Config, engine: Engine, on_ready: Callable[[], None]):
        super().__init__(config)
        self._engine, self._on_ready = engine, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and says so."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes the port, and later the connections: a request may be on its way on them."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(self._engine.limits.drain_seconds / 2)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stops gracefully at a signal.

        The command's own way, which ends the process at once where no training saves its state, is
        set aside until the server has ended.
        """
        loop = asyncio.get_running_loop()
        descriptor = signal.set_wakeup_fd(-1)
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._stop, number, loop)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)
            signal.set_wakeup_fd(descriptor)

    def _stop(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        if self._engine.draining and number == signal.SIGINT:
            self.should_exit = self.force_exit = True
        elif not self._engine.draining:
            self._engine.draining = True
            drain = self._engine.limits.drain_seconds / 2
            loop.call_later(drain, setattr, self, "should_exit", True)
