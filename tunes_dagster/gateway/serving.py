"""Runs the application on uvicorn."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

    import uvicorn
    from fastapi import FastAPI

# A full collection walks everything that was imported and stops every request for its time.
_GC_THRESHOLDS = (20_000, 20, 100)


def _end_with(parent: str) -> None:
    """End this process when the one that started it is gone; "" leaves it alone."""
    if not parent.isdecimal():
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _allow_many_files() -> None:
    """Raise the limit of open files as far as this process may: every connection is one, every upload another."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # there are none elsewhere, or it may not
        import resource

        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def server_of(app: FastAPI, host: str = "127.0.0.1", port: int = 8000) -> uvicorn.Server:
    """Return the server of an application, with the limits of its options on every connection."""
    import uvicorn

    from tunes_dagster.gateway.connections import limited

    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            http=limited(app.state.service.options),
            ws="none",
            log_level="warning",
            access_log=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=20,
            server_header=False,
        )
    )


def run(
    app: FastAPI, host: str = "127.0.0.1", port: int = 8000, ready: Callable[[], None] = lambda: None
) -> None:
    """Serve until a signal ends it; open requests are answered first.

    Args:
        app: What answers.
        host: Address to listen on.
        port: Port to listen on.
        ready: Called once it listens.
    """
    _end_with(os.environ.get("TUNES_SERVE_WITH", ""))
    _allow_many_files()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    server = server_of(app, host, port)
    begin = server.startup

    async def startup(sockets: list[socket.socket] | None = None) -> None:
        await begin(sockets)
        if server.started:
            ready()

    server.startup = startup  # type: ignore[method-assign]
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        raise SystemExit(3)
