"""The page of `kclf serve` in a real browser: a photo is chosen, predicted and explained."""

from __future__ import annotations

import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
import uvicorn

import kclf
from kclf.serve import create_app
from tests.conftest import with_random_logits
from tests.test_report_browser import PHONE, browser  # noqa: F401 - a fixture

SCREENS = {"desktop": PHONE | {"width": 1200, "deviceScaleFactor": 1, "mobile": False}, "phone": PHONE}
MANY = [f"breed_{n:02}" for n in range(8)]


@pytest.fixture(scope="module")
def address():
    """A server of our own, with neighbours."""
    picture = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="

    def similar(square, count):
        return [{"label": name, "similarity": 0.9, "thumbnail": picture} for name in MANY[:count]]

    model = with_random_logits(kclf.ImageClassifier("MobileNet_025", MANY, size=64, weights=None))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = uvicorn.Config(create_app(model, title="Pets", similar=similar), port=port, log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def element(browser, selector):  # noqa: F811
    found = browser.command("POST", "/element", using="css selector", value=selector)
    return next(iter(found.values()))


def wait_for(browser, script, seconds=20):  # noqa: F811
    for _ in range(seconds * 10):
        if browser.run(script):
            return
        time.sleep(0.1)
    raise AssertionError(f"never true: {script}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_a_photo_is_predicted_and_explained(browser, address, tmp_path, scheme, screen):  # noqa: F811
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(photo)
    size = (
        PHONE
        if screen == "phone"
        else {"width": 1200, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    browser.devtools("Emulation.setDeviceMetricsOverride", **size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.devtools("Emulation.setEmulatedMedia", features=features)
    browser.logs("browser")
    browser.command("POST", "/url", url=address)

    browser.command("POST", f"/element/{element(browser, '#choose')}/value", text=str(photo))
    wait_for(browser, "return document.querySelectorAll('.row').length === 5")
    assert browser.run("return document.querySelector('h2').textContent") in MANY
    browser.run("document.querySelector('article button').click()")
    wait_for(browser, "return document.querySelectorAll('.near img').length === 6")

    boxes = "['.photo img', '.heat'].map(name => document.querySelector(name).getBoundingClientRect().bottom)"
    photo_ends, heat_ends = browser.run(f"return {boxes}")
    assert heat_ends == pytest.approx(photo_ends, abs=1)
    right = browser.run("return document.querySelector('article').getBoundingClientRect().right")
    assert right <= SCREENS[screen]["width"]
    assert [entry for entry in browser.logs("browser") if entry["level"] == "SEVERE"] == []
    pixels = browser.screenshot(tmp_path / f"{screen}-{scheme}.png")
    assert (pixels[2, 2].mean() < 100) == (scheme == "dark")
