"""The report in a real browser: no error, no request, and all that moves does."""

from __future__ import annotations

import base64
import csv
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kclf.checks import Finding, Findings, check, read_ledger
from kclf.interpret import Interpretation
from kclf.prediction.predictions import Predictions
from kclf.report import ReportInputs, write_ledger_page, write_report

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WITHIN = ("data:", "blob:", "chrome:", "chrome-untrusted:")  # the page itself, and the browser's first tab
NAMES = [f"breed_{number:02}" for number in range(30)]
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


@dataclass
class Browser:
    """The few commands of the WebDriver protocol that these tests need."""

    address: str

    def command(self, method: str, path: str, **body: Any) -> Any:
        request = urllib.request.Request(
            f"{self.address}{path}",
            method=method,
            data=json.dumps(body).encode() if method == "POST" else None,
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path) -> None:
        self.logs("browser"), self.logs("performance")
        self.command("POST", "/url", url=page.as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        return self.command("POST", "/execute/sync", script=script, args=list(arguments))

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self.command("POST", "/goog/cdp/execute", cmd=command, params=parameters)

    def logs(self, kind: str) -> list[dict[str, Any]]:
        return self.command("POST", "/se/log", type=kind)

    def requests(self, page: Path) -> set[str]:
        """Addresses asked for since the page was opened, but for those inside it."""
        found: set[str] = set()
        for _ in range(100):
            events = [json.loads(entry["message"])["message"] for entry in self.logs("performance")]
            sent = [
                e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
            ]
            found |= {address for address in sent if not address.startswith(WITHIN)}
            if page.as_uri() in found:
                break
            time.sleep(0.1)
        return found

    def screenshot(self, file: Path) -> np.ndarray:
        file.write_bytes(base64.b64decode(self.command("GET", "/screenshot")))
        return np.asarray(Image.open(file).convert("RGB"))

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.devtools(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key]
            )

    def point(self, x: float, y: float) -> None:
        self.devtools("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)


KEYS = {"Enter": 13, "ArrowRight": 39, "ArrowDown": 40}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    folder = tmp_path_factory.mktemp("chromium")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with open(folder / "driver.log", "w") as log:
        process = subprocess.Popen([driver, f"--port={port}"], stdout=log, stderr=log)
    try:
        session = _session(Browser(f"http://127.0.0.1:{port}"), chromium, folder)
        yield session
        session.command("DELETE", "")  # or the browser outlives its driver
    finally:
        process.terminate()
        process.wait()


def _session(browser: Browser, chromium: str, folder: Path) -> Browser:
    options = {
        "binary": chromium,
        "args": [*FLAGS, f"--user-data-dir={folder / 'profile'}", "--window-size=1200,900"],
        "prefs": {"download.default_directory": str(folder)},
    }
    wanted = {
        "browserName": "chrome",
        "goog:chromeOptions": options,
        "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
    }
    for _ in range(100):
        try:
            session = browser.command("POST", "/session", capabilities={"alwaysMatch": wanted})
            return Browser(f"{browser.address}/session/{session['sessionId']}")
        except urllib.error.URLError:
            time.sleep(0.2)
    raise RuntimeError(f"chromedriver does not answer; see {folder / 'driver.log'}")


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """The report of a run whose class names and file names try to break out of the page."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    names = [*NAMES[:-1], "</script><b>'\"&"]
    labels = np.repeat(np.arange(30), 4)
    logits = rng.normal(size=(120, 30))
    logits[np.arange(120), labels] += 3
    paths = []
    for number, label in enumerate(labels):
        pixels = np.full((60, 80, 3), (label * 8, 120, number % 256), np.uint8)
        paths.append(str(folder / f"photo {number}<i>.png"))
        Image.fromarray(pixels).save(paths[-1])
    powers = np.exp(logits)
    shares = powers / powers.sum(axis=1, keepdims=True)
    answers = Interpretation(Predictions(shares, labels, np.array(paths), names))
    inputs = ReportInputs(
        title="Run <1>",
        settings={"backbone": "ResNet50", "versions": {"keras": "3"}},
        history={
            "epoch": [1, 2],
            "train_loss": [2, 1],
            "valid_loss": [2, 1.5],
            "accuracy": [0.5, 0.7],
            "time": [9, 8],
        },
        batches={
            "step": np.arange(50),
            "learning_rate": np.linspace(0, 1, 50),
            "smoothed_loss": np.linspace(3, 1, 50),
        },
        interpretation=answers,
    )
    return write_report(inputs, folder / "report.html")


@pytest.fixture
def opened(browser, page) -> Browser:
    browser.open(page)
    return browser


def test_the_page_has_no_error_and_asks_for_nothing(opened, page):
    opened.run("window.scrollTo(0, document.body.scrollHeight)")
    assert opened.logs("browser") == []
    assert opened.requests(page) == {page.as_uri()}
    assert page.stat().st_size < 3_000_000


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_the_page_follows_the_colour_scheme(opened, tmp_path, scheme, is_dark):
    opened.devtools(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
    )
    picture = opened.screenshot(tmp_path / f"{scheme}.png")
    assert (picture.mean() < 80) == is_dark
    assert contrast(opened, "body") >= 7


def contrast(browser: Browser, selector: str) -> float:
    """Contrast of text and background after WCAG."""
    colours = browser.run(
        "const s = getComputedStyle(document.querySelector(arguments[0]));"
        "return [s.color, s.backgroundColor].map((c) => c.match(/[\\d.]+/g).slice(0, 3).map(Number))",
        selector,
    )
    linear = [
        [((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 3294 for c in colour] for colour in colours
    ]
    dark, light = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear)
    return (light + 0.05) / (dark + 0.05)


def test_the_page_fits_a_phone(browser, page, tmp_path):
    browser.devtools("Emulation.setDeviceMetricsOverride", **PHONE)
    try:
        browser.open(page)
        browser.screenshot(tmp_path / "phone.png")
        assert browser.run("return document.documentElement.scrollWidth") == 390
        assert browser.run("return document.querySelector('#gallery li:not([hidden])').offsetWidth") > 150
    finally:
        browser.devtools("Emulation.clearDeviceMetricsOverride")


def test_ordering_the_matrix(opened):
    rows = "return [...document.querySelectorAll('#matrix text.row')].map((text) => text.textContent)"
    by_confusion = opened.run(rows)
    opened.run("document.querySelector('[data-order=name]').click()")
    assert opened.run(rows) == sorted(by_confusion, key=str.casefold)
    opened.run("document.querySelector('#worst').click()")
    assert len(opened.run(rows)) == 20


def test_pointing_at_a_cell_says_what_it_is(opened):
    x, y = opened.run(
        "const rects = [...document.querySelectorAll('#matrix svg rect[fill]')];"
        "const wrong = rects.find((rect) => rect.getAttribute('fill').includes('wrong'));"
        "wrong.scrollIntoView({ behavior: 'instant', block: 'center' });"
        "const box = wrong.getBoundingClientRect();"
        "return [box.x + 4, box.y + 4]"
    )
    opened.point(x, y)
    assert "taken for" in opened.run("return document.getElementById('said').textContent")


def test_the_matrix_works_by_keyboard(opened):
    opened.run(
        "document.querySelector('[data-order=name]').click(); document.querySelector('#matrix').focus()"
    )
    opened.press("ArrowRight")
    opened.press("ArrowDown")
    assert opened.run("return document.getElementById('said').textContent").startswith("breed_00: ")
    opened.press("Enter")
    assert opened.run("return document.getElementById('actual').value") == "breed_00"


def test_a_confused_pair_filters_the_photos(opened):
    pair = opened.run(
        "const link = document.querySelector('a[data-actual]'); link.click();"
        "return [link.dataset.actual, link.dataset.predicted]"
    )
    shown = opened.run(
        "return [...document.querySelectorAll('#gallery li:not([hidden])')]"
        ".map((item) => [item.dataset.actual, item.dataset.predicted])"
    )
    assert shown
    assert all(photo == pair for photo in shown)
    opened.run("document.getElementById('all').click()")
    assert opened.run("return document.getElementById('count').textContent") == "120 photos"


def test_the_table_of_classes_sorts(opened):
    column = (
        "return [...document.querySelectorAll('table.sortable tbody tr')]"
        ".map((row) => Number(row.children[3].dataset.value))"
    )
    opened.run("document.querySelectorAll('table.sortable th button')[3].click()")
    assert opened.run(column) == sorted(opened.run(column))
    head = "return document.querySelectorAll('table.sortable thead th')[3].getAttribute('aria-sort')"
    assert opened.run(head) == "ascending"


def test_names_stay_text(opened):
    assert opened.run("return document.querySelectorAll('main b > b, main i').length") == 0
    assert opened.run("return document.querySelector('h1').textContent") == "Run <1>"
    assert opened.run(
        "return [...document.querySelectorAll('#actual option')].some((o) => o.value.startsWith('</script>'))"
    )


def test_everything_to_press_has_a_name(opened):
    nameless = opened.run(
        "return [...document.querySelectorAll('button, select, input, [tabindex]')].filter((part) =>"
        " !(part.textContent.trim() || part.ariaLabel || part.labels?.length)).map((part) => part.outerHTML)"
    )
    assert nameless == []
    assert opened.run("return [...document.images].every((image) => image.hasAttribute('alt'))")


def saved_rows(browser, folder: Path) -> list[Finding]:
    """The rows of a ledger's page, which is open, as its button saves them."""
    browser.devtools("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    browser.run("document.getElementById('save').click()")
    written = folder / "ledger.csv"
    for _ in range(100):  # the browser makes the file first and fills it after
        if written.exists() and written.stat().st_size:
            break
        time.sleep(0.1)
    return read_ledger(written)


def test_a_ledger_is_edited_in_the_page_and_saved(browser, tmp_path):
    folder = tmp_path / "photos"
    for name, colour in (("cat/a, b.png", 10), ("cat/copy.png", 10), ("dog/c.png", 90)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(colour).integers(0, 255, (80, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    findings = check(folder)
    browser.open(write_ledger_page(findings, tmp_path / "ledger.html"))
    browser.run("document.getElementById('accept').click()")
    saved = saved_rows(browser, tmp_path)
    assert browser.logs("browser") == []
    assert [row.path for row in saved] == [row.path for row in findings]
    assert [row.action for row in saved] == [row.advice for row in findings] == ["delete"]


def test_choices_go_with_the_photo_and_not_with_its_row(browser, tmp_path):
    def findings(*names):
        known = {"advice": "delete", "folder": str(tmp_path), "num_bytes": 9}
        return Findings([Finding(name, "odd", 0.5, "", digest=f"of {name}", **known) for name in names])

    first = [f"{number}.png" for number in range(17)]
    other = [*first[:16], "new.png"]
    browser.open(write_ledger_page(findings(*first), tmp_path / "ledger.html"))
    browser.run("document.getElementById('accept').click()")

    browser.open(write_ledger_page(findings(*other), tmp_path / "ledger.html"))
    rows = saved_rows(browser, tmp_path)

    assert [row.path for row in rows if row.action == "keep"] == ["new.png"]


def test_a_saved_ledger_has_no_formula_and_comes_back_exactly(browser, tmp_path):
    names = ["=1+1.png", "+1", "-cmd", "@A1", "\t=1", " =1", "'=1", "a\rb", "a\nb", 'a","b', "-1.5", "+1e3"]
    rows = [Finding(name, "odd", 0.5, "", label=name, folder=str(tmp_path)) for name in names]

    browser.open(write_ledger_page(Findings(rows), tmp_path / "ledger.html"))
    found = saved_rows(browser, tmp_path)

    assert [(row.path, row.label) for row in found] == [(name, name) for name in names]
    with open(tmp_path / "ledger.csv", newline="", encoding="utf-8-sig") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    computed = [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert all(np.isfinite(float(cell)) for cell in computed), computed
