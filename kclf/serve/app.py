"""The HTTP API of a classifier, and the page that uses it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
import os
import time
from collections.abc import AsyncIterator, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from starlette.formparsers import MultiPartException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from ..data.decoding import open_image
from ..data.images import draft, size_for
from ..errors import ImageError
from ..interpret import grad_cam
from ..prediction import Predictions
from ..report.thumbnails import heat_address, jpeg
from .engine import Busy, Engine
from .limits import App, Guard, Limits, Message, Receive, Send

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
TOP = 5
Similar = Callable[[np.ndarray, int], list[dict[str, Any]]]


def _object_of_photos(photo: dict[str, str]) -> dict[str, Any]:
    return {"type": "object", "properties": {"photos": {"type": "array", "items": photo}}}


BINARY, BASE64 = ({"type": "string", "format": name} for name in ("binary", "byte"))
PHOTOS_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": _object_of_photos(BINARY)},
        "application/json": {"schema": _object_of_photos(BASE64)},
        "image/*": {"schema": BINARY},
    },
}


class Service:
    """A classifier with the threads that decode and predict, and what is counted.

    Args:
        model: an `ImageClassifier`.
        title: name of the page.
        limits: of a request.
        similar: gives the nearest training photos of a photo uint8 (side, side, 3), or None.
        threshold: where no class is as probable, the photo may be none of these; a request can bring its own.
    """

    def __init__(
        self,
        model: Any,
        *,
        title: str,
        limits: Limits,
        similar: Similar | None = None,
        threshold: float | None = None,
    ) -> None:
        self.model, self.title, self.limits = model, title, limits
        self.similar, self.threshold = similar, threshold
        self.engine = Engine(model)
        self.decoders = ThreadPoolExecutor(os.cpu_count() or 1, "kclf-decode")
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "kclf_requests", "Requests by path and status", ["path", "status"], registry=self.registry
        )
        self.photos = Counter("kclf_photos", "Photos predicted", registry=self.registry)
        self.seconds = Histogram("kclf_request_seconds", "Seconds a request", registry=self.registry)

    def close(self) -> None:
        """End the threads."""
        self.decoders.shutdown()
        self.engine.close()

    def read(self, content: bytes) -> np.ndarray:
        """A photo's bytes as the model takes them.

        Raises:
            ImageError: they are no photo, or have more pixels than may come.
        """
        try:
            with open_image(io.BytesIO(content)) as image:
                draft(image, size_for(self.model))
                width, height = image.size
        except (OSError, ValueError, SyntaxError) as error:
            raise ImageError("photo", f"not an image that can be read ({error})") from error
        if width * height > self.limits.pixels:
            raise ImageError("photo", f"{width} x {height} pixels, more than {self.limits.pixels:,}")
        return self.model.read(content)

    async def predict(self, content: bytes) -> Predictions | str:
        """The prediction of one photo, or the reason why it cannot be read."""
        photo = self.decoders.submit(self.read, content)
        try:
            found = await asyncio.wrap_future(self.engine.submit(photo))
        except ImageError as error:
            return error.reason
        self.photos.inc()
        return found


class Counted:
    """Counts the requests of an application by path and status, and their seconds. ASGI middleware."""

    def __init__(self, app: App, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        start, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            if scope["type"] == "http":
                path = getattr(scope.get("route"), "path", "other")
                self.service.requests.labels(path, status).inc()
                self.service.seconds.observe(time.perf_counter() - start)


def create_app(
    model: Any,
    *,
    title: str = "kclf",
    limits: Limits | None = None,
    token: str | None = None,
    hosts: Sequence[str] = LOCAL_HOSTS,
    similar: Similar | None = None,
    threshold: float | None = None,
    start: bool = True,
) -> Any:
    """The ASGI application of a classifier: a page at `/`, and an HTTP API.

    `POST /predict` takes photos as `multipart/form-data`, as JSON (`{"photos": [base64, ...]}`) or one as the
    body itself (`Content-Type: image/...`), and gives their classes with probabilities. `POST /explain` takes
    one and gives Grad-CAM and the nearest training photos. `GET /health`, `GET /metrics` (Prometheus), and
    `GET /openapi.json`. No path of the server's disk is ever taken from a request.

    Args:
        model: an `ImageClassifier`.
        title: of the page.
        limits: what a request may cost; None takes the defaults of `Limits`.
        token: what requests have to bring; None asks for nothing.
        hosts: names under which the server answers, "*" for any; others are refused against DNS rebinding.
        similar: gives the nearest training photos of a photo.
        threshold: probability below which a photo may be none of the classes; None says so of none.
        start: predict in a thread of its own; False leaves it to the caller to call
            `app.state.service.engine.run()`, best in the main thread.
    """
    limits = limits or Limits()
    service = Service(model, title=title, limits=limits, similar=similar, threshold=threshold)
    if start:
        service.engine.start()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title=title, version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    _add_routes(app, service)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_middleware(Guard, limits=limits, token=token)

    app.add_middleware(Counted, service=service)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> str:
        template = files("kclf.serve").joinpath("page.html").read_text(encoding="utf-8")
        model = service.model
        facts = {"title": service.title, "classes": model.class_names, "task": model.task}
        return template.replace("{{facts}}", json.dumps(facts).replace("<", "\\u003c"))

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Whether the server answers, and with what."""
        return {"status": "ok", "task": service.model.task, "classes": service.model.class_names}

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> bytes:
        """Counts for Prometheus."""
        return generate_latest(service.registry)

    @app.post("/predict", openapi_extra={"requestBody": PHOTOS_BODY})
    async def predict(
        request: Request,
        top: int = Query(TOP, ge=1, le=1000),
        threshold: float | None = Query(service.threshold, ge=0, le=1),
    ) -> dict[str, Any]:
        """Classes and probabilities of each photo, in their order; none of these below the threshold."""
        photos = await _photos_of(request, service.limits)
        found = await asyncio.gather(*[service.predict(content) for _, content in photos])
        if all(isinstance(one, str) for one in found):
            raise HTTPException(422, f"Expected photos. Received: {found[0]}")
        rows = [{"error": one} if isinstance(one, str) else _row(one, top, threshold) for one in found]
        return {"predictions": [{"name": name} | row for (name, _), row in zip(photos, rows, strict=True)]}

    @app.post("/explain", openapi_extra={"requestBody": PHOTOS_BODY})
    async def explain(request: Request) -> dict[str, Any]:
        """Where the model looks on one photo (Grad-CAM), and which training photos are nearest."""
        photos = await _photos_of(request, service.limits)
        if len(photos) != 1:
            raise HTTPException(422, f"Expected one photo. Received: {len(photos)}")
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(service.decoders, _explained, service, photos[0][1])
        except ImageError as error:
            raise HTTPException(422, f"Expected a photo. Received: {error.reason}") from error

    @app.exception_handler(ClientDisconnect)
    def gone(request: Request, error: ClientDisconnect) -> JSONResponse:
        return JSONResponse({"detail": "The client went away before the photos were here"}, 400)

    @app.exception_handler(Busy)
    def busy(request: Request, error: Busy) -> JSONResponse:
        return JSONResponse({"detail": "Too many photos are waiting: try again"}, 503, {"Retry-After": "1"})


def _row(found: Predictions, top: int, threshold: float | None) -> dict[str, Any]:
    """What is said of one photo: its classes; or its numbers, of a regression."""
    if found.task == "regression":
        numbers = zip(found.class_names, found.probabilities[0], strict=True)
        return {
            "prediction": found.label_text(found.predicted[0]),
            "numbers": [{"name": name, "value": float(value)} for name, value in numbers],
        }
    classes = [{"class": name, "probability": round(float(p), 6)} for name, p in found.top(top)[0]]
    unsure = {} if threshold is None else {"none_of_these": bool(found.confidence[0] < threshold)}
    return {"prediction": found.label_text(found.predicted[0]), "classes": classes} | unsure


def _explained(service: Service, content: bytes) -> dict[str, Any]:
    square = service.read(content)
    cam = service.engine.with_model(lambda model: grad_cam(model, square[None]))
    nearest = [] if service.similar is None else service.similar(square, 6)
    return {"photo": jpeg(cam.images[0]), "heat": heat_address(cam.maps[0]), "similar": nearest}


async def _photos_of(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    """Names and bytes of the photos of a request."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        named = await _form_photos(request, limits)
    elif kind == "application/json":
        named = _json_photos(await request.body())
    elif kind.startswith("image/") or kind == "application/octet-stream":
        named = [("photo", await request.body())]
    else:
        raise HTTPException(
            415, f"Expected multipart/form-data, application/json or image/*. Received: {kind or 'nothing'}"
        )
    if not 1 <= len(named) <= limits.photos:
        raise HTTPException(422, f"Expected 1 to {limits.photos} photos. Received: {len(named)}")
    return named


async def _form_photos(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    try:
        async with request.form(max_files=limits.photos + 1, max_fields=16) as form:
            parts = [part for _, part in form.multi_items() if not isinstance(part, str)]
            return [(part.filename or "photo", await part.read()) for part in parts]
    except MultiPartException as error:
        raise HTTPException(400, f"The form is damaged: {error.message}") from error


def _json_photos(body: bytes) -> list[tuple[str, bytes]]:
    try:
        photos = json.loads(body)["photos"]
        if not isinstance(photos, list):
            raise TypeError(f"photos is a {type(photos).__name__}")
        texts = [text.partition(",")[2] if text.startswith("data:") else text for text in photos]
        return [(f"photo {n}", base64.b64decode(text, validate=True)) for n, text in enumerate(texts)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise HTTPException(
            422, f'Expected {{"photos": [base64, ...]}}. Received: {error or type(error).__name__}'
        ) from error
