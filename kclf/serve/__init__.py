"""`kclf serve`: a classifier behind a local web page and an HTTP API (the extra `[serve]`)."""

from .app import create_app
from .engine import Engine
from .server import serve

__all__ = ["Engine", "create_app", "serve"]
