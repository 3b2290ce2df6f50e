"""Run the recipes: as scripts, small or full, or into notebooks with their outputs.

    python recipes/run.py --small          # all of them in a few minutes, on pictures drawn here
    python recipes/run.py 02               # one of them on the real photos
    python recipes/run.py --notebook 02    # the same, into recipes/02_....ipynb (needs the extra [recipes])

Photos come from the folders in `KCLF_DOGSCATS` and `KCLF_PETS`, or by `kclf.datasets` where there is a
network. `KCLF_WEIGHTS` names a folder of MobileNetV2's weights under their published names.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FOLDER = Path(__file__).resolve().parent
PHOTOS = {"KCLF_DOGSCATS": "dogscats", "KCLF_PETS": "pets"}
LARGE_PICTURE = 250_000  # bytes in base64; curves and matrices stay below
CATS = ("Abyssinian", "Bengal")  # Oxford-IIIT Pet writes breeds of cats with a capital
DOGS = ("beagle", "boxer", "pug", "great_pyrenees")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="beginnings of names, such as 02; all where none is given")
    parser.add_argument("--small", action="store_true", help="seconds each: does it run?")
    parser.add_argument(
        "--notebook", action="store_true", help="write the executed notebook beside the source"
    )
    options = parser.parse_args()
    for recipe in find_recipes(options.names):
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="kclf-recipe-") as folder:
            environment = prepare(Path(folder), small=options.small)
            (into_notebook if options.notebook else as_script)(recipe, Path(folder), environment)
        print(f"{recipe.stem}: {time.perf_counter() - start:.0f} s", flush=True)


def find_recipes(names: list[str]) -> list[Path]:
    """The sources whose names begin with one of `names`, in order."""
    recipes = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
    unknown = [name for name in names if not any(recipe.name.startswith(name) for recipe in recipes)]
    if unknown:
        sys.exit(f"Expected beginnings of {', '.join(r.stem for r in recipes)}. Received: {unknown}")
    return [recipe for recipe in recipes if not names or recipe.name.startswith(tuple(names))]


def prepare(folder: Path, *, small: bool) -> dict[str, str]:
    """The environment of a run in `folder`: the photos lie there by name, so that outputs name no machine."""
    environment = {"KERAS_BACKEND": "torch", "MPLBACKEND": "agg", **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")])
    if small:
        environment["KCLF_SMALL"] = "1"
        environment.setdefault(
            "OMP_NUM_THREADS", "1"
        )  # more threads only wait for each other over such pictures
        draw_standins(folder)
    for variable, name in PHOTOS.items():
        if not small and variable in os.environ:
            (folder / name).symlink_to(Path(os.environ[variable]).resolve(), target_is_directory=True)
        if (folder / name).exists():
            environment[variable] = name
    return environment


def as_script(recipe: Path, folder: Path, environment: dict[str, str]) -> None:
    """Run the source as the Python script that it is."""
    subprocess.run([sys.executable, str(recipe)], cwd=folder, env=environment, check=True)


def into_notebook(recipe: Path, folder: Path, environment: dict[str, str]) -> None:
    """Run the source as a notebook and write it, outputs and all, beside the source."""
    import jupytext
    import nbformat
    from nbclient import NotebookClient

    os.environ.update(environment | {"PYTHONWARNINGS": "ignore:IProgress not found"})
    os.environ.pop("MPLBACKEND")  # the notebook's own draws into the page
    notebook = jupytext.read(recipe)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources=place).execute()
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # the same at each run
        cell.metadata.pop("execution", None)
        if "outputs" in cell:
            cell.outputs = tidy(cell.outputs)
    nbformat.write(notebook, recipe.with_suffix(".ipynb"))


def tidy(outputs: list[Any]) -> list[Any]:
    """Outputs without the names of objects (`<Axes: ...>`), and what was printed in one piece."""
    has_picture = any("image/png" in output.get("data", {}) for output in outputs)
    kept: list[Any] = []
    for output in outputs:
        text = output.get("data", {}).get("text/plain", "")
        if output.output_type == "stream" and (
            "\r" in output.text or not output.text.strip()
        ):  # progress bars
            continue
        if "image/png" in output.get("data", {}):
            output.data.pop("text/plain", None)
            shrink(output.data)
        elif output.output_type == "execute_result" and (has_picture or text.startswith("<")):
            continue
        if kept and output.output_type == "stream" == kept[-1].output_type and output.name == kept[-1].name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def shrink(data: Any) -> None:
    """A picture of photos as JPEG, a tenth of the size of its PNG."""
    if len(data["image/png"]) > LARGE_PICTURE:
        picture, small = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))), io.BytesIO()
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture.convert("RGBA").getchannel("A"))
        white.save(small, "JPEG", quality=85, optimize=True)
        del data["image/png"]
        data["image/jpeg"] = base64.b64encode(small.getvalue()).decode()


def draw_standins(folder: Path) -> None:
    """Striped pictures in the places and under the names of the photos, a colour and slant for each class."""
    generator = np.random.default_rng(0)
    for number in range(40):
        for kind, name in enumerate(("cat", "dog")):
            draw(folder / "dogscats" / f"{name}.{number}.jpg", kind, generator)
    for kind, breed in enumerate((*CATS, *DOGS)):
        for number in range(10):
            draw(folder / "pets" / breed / f"{breed}_{number + 1}.jpg", kind, generator)


def draw(path: Path, kind: int, generator: np.random.Generator) -> None:
    """One picture, 72 x 60 pixels."""
    y, x = np.mgrid[0:60, 0:72]
    stripes = np.sin((x * np.cos(kind) + y * np.sin(kind)) / 3 + generator.uniform(0, 6))
    pixels = (
        110
        + 60 * stripes[..., None]
        + 50 * np.sin(kind + np.arange(3))
        + generator.normal(0, 12, (60, 72, 3))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.uint8(np.clip(pixels, 0, 255))).save(path)


if __name__ == "__main__":
    main()
