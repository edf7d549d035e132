"""Starting and stopping the service: in the foreground, or in a thread for the length of a `with` block."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import httpx
import uvicorn
from starlette.types import ASGIApp

from etymon.engine import AsyncEngine
from etymon.errors import ConfigError, EtymonError
from etymon.serve.app import create_app
from etymon.serve.config import ServeConfig
from etymon.text import Renderer, Tokenizer


def run(
    async_engine: AsyncEngine,
    tokenizer: Tokenizer,
    renderer: Renderer | None,
    config: ServeConfig | None = None,
    *,
    announce: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then let running answers end (`drain_seconds`) and stop the engine.

    `announce` is called with the base URL once the service answers. Raises `ConfigError` where the address is taken
    or is not this machine's.
    """
    config = config or ServeConfig()
    app = create_app(async_engine, tokenizer, renderer, config)
    with _bind(config.host, config.port) as listener:
        server = _Server(_uvicorn(app, config.drain_seconds), announce and (lambda: announce(_url(listener))))
        try:
            server.run(sockets=[listener])
        except SystemExit:
            raise EtymonError("The service could not start; the log says why.") from None


@contextmanager
def running(app: ASGIApp, host: str = "127.0.0.1", port: int = 0, *, drain_seconds: int = 5) -> Iterator[str]:
    """Serve `app` from a thread while the block runs; yield its base URL (`http://127.0.0.1:PORT`).

    Port 0 takes any free one. Raises `ConfigError` where the address is taken, `EtymonError` where starting fails.
    """
    with _bind(host, port) as listener:
        server = _Server(_uvicorn(app, drain_seconds))

        def serve() -> None:
            with suppress(SystemExit):  # how uvicorn says that starting failed
                server.run(sockets=[listener])

        thread = threading.Thread(target=serve, name="etymon-serve", daemon=True)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise EtymonError("The service could not start; the log says why.")
                time.sleep(0.01)
            yield _url(listener)
        finally:
            server.should_exit = True
            thread.join(drain_seconds + 10)


def wait_until_ready(url: str, timeout: float = 30.0) -> None:
    """Return once `url`'s `/health` answers 200; raise `EtymonError` after `timeout` seconds without."""
    deadline = time.monotonic() + timeout
    last = "no answer"
    with httpx.Client(trust_env=False, timeout=max(1.0, min(timeout, 5.0))) as client:
        while True:
            try:
                answer = client.get(f"{url.rstrip('/')}/health")
                if answer.status_code == 200:
                    return
                last = f"status {answer.status_code}"
            except httpx.HTTPError as error:
                last = str(error) or type(error).__name__
            if time.monotonic() > deadline:
                raise EtymonError(f"The service at {url} was not ready within {timeout:g} s ({last}).")
            time.sleep(0.05)


class _Server(uvicorn.Server):
    """uvicorn, which says when it has started, and whose `run` returns when a signal ended it."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None] | None = None) -> None:
        super().__init__(config)
        self._on_start = on_start

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM as the wish to stop; uvicorn's own would raise them again after stopping."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sign: signal.signal(sign, self.handle_exit) for sign in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sign, handler in before.items():
                signal.signal(sign, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the service and announce it."""
        await super().startup(sockets)
        if self.started and self._on_start is not None:
            self._on_start()


def _uvicorn(app: ASGIApp, drain_seconds: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="on",
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=drain_seconds,
    )


def _bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; binding here rather than in uvicorn names the port and turns faults into words."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
    except OSError as error:
        raise ConfigError(f"Cannot listen on {host!r}: {error.strerror or error}.") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        why = error.strerror or error
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {why}. Choose another port (0 takes any free one)."
        ) from None
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
