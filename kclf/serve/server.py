"""The server process of `kclf serve`."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ..errors import KclfError
from .app import LOCAL_HOSTS, Similar, create_app
from .limits import Limits

KEEP_ALIVE = 5  # seconds a connection may idle between two requests
MOST_CONNECTIONS = 256


def serve(
    model: Any,
    *,
    title: str = "kclf",
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    hosts: Sequence[str] = (),
    limits: Limits | None = None,
    similar: Similar | None = None,
    threshold: float | None = None,
) -> None:
    """Serve a classifier until Ctrl-C.

    Args:
        model: an `ImageClassifier`.
        title: of the page.
        host: the address to listen on; "0.0.0.0" lets other machines in.
        port: the port.
        token: what requests have to bring; None asks for nothing.
        hosts: names under which other machines reach it; those of this machine are always allowed.
        limits: what a request may cost.
        similar: gives the nearest training photos of a photo.
        threshold: probability below which a photo may be none of the classes; None says so of none.

    Raises:
        KclfError: the port is taken, the address is not one of this machine, or the server did not start.
    """
    import uvicorn

    allowed = [*LOCAL_HOSTS, host, *hosts] if host != "0.0.0.0" or hosts else ["*"]
    app = create_app(
        model,
        title=title,
        limits=limits,
        token=token,
        hosts=allowed,
        similar=similar,
        threshold=threshold,
        start=False,
    )
    config = uvicorn.Config(
        app,
        log_config=None,  # uvicorn's would close the handlers of others
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE,
        limit_concurrency=MOST_CONNECTIONS,
        server_header=False,
    )
    server, engine = uvicorn.Server(config), app.state.service.engine

    def answer() -> None:
        try:
            server.run([listening])
        finally:
            engine.close()

    answering = threading.Thread(target=answer, name="kclf-http", daemon=True)
    with _listening(host, port) as listening, suppress(KeyboardInterrupt), server.capture_signals():
        answering.start()
        engine.run()  # in this thread; it ends when the server does
        answering.join()
    if not server.started:
        raise KclfError(f"The server at {host}:{port} did not start: its error stands above")


def _listening(host: str, port: int) -> socket.socket:
    """A socket as asyncio wants it: only where the protocol is TCP by name are small answers sent at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if os.name == "posix":
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise KclfError(
            f"Cannot listen on {host}:{port}: {error.strerror}. Choose another port or host"
        ) from error
    return listening
