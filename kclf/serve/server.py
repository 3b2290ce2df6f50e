"""The server process of `kclf serve`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    """
    import uvicorn

    allowed = [*LOCAL_HOSTS, host, *hosts] if host != "0.0.0.0" or hosts else ["*"]
    app = create_app(
        model, title=title, limits=limits, token=token, hosts=allowed, similar=similar, threshold=threshold
    )
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE,
        limit_concurrency=MOST_CONNECTIONS,
        server_header=False,
    )
