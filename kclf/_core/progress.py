"""The one progress bar: a line in a terminal, the same in a notebook, nothing where nobody looks."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from html import escape
from typing import Any

from tqdm.std import tqdm

WIDTH = 79  # characters in a notebook
STYLE = "margin:0; font-size:var(--jp-code-font-size, inherit)"  # as the text that cells print
DELAY = 0.5  # seconds that pass before a short piece of work is worth a bar
FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit}{speed}{postfix}{left}"
ENDLESS = "{desc} {n_fmt} {unit}{speed}{postfix}"  # where the length is not known


class Progress(tqdm):
    """A bar with what is done, the speed, and the time left; it disappears when it is closed.

    In a terminal it is the last line of standard error. In a notebook it is an output that is written anew,
    without ipywidgets, and leaves nothing in the file. Where standard error is neither, it shows nothing.

    Args:
        total: how much there is to do; None where that is not known.
        name: what is done.
        unit: of `total`, in the plural.
        photos: photos a unit, for the speed; 0 where units are no photos.
        shown: False shows nothing.
        done: how much of it is done already.
        delay: seconds before it appears.

    Example:
        >>> with Progress(3, "Reading", shown=False) as bar:
        ...     bar.update()
    """

    def __init__(
        self,
        total: int | None,
        name: str,
        *,
        unit: str = "photos",
        photos: int = 1,
        shown: bool = True,
        done: int = 0,
        delay: float = DELAY,
    ) -> None:
        self.photos = photos
        notebook = in_notebook()
        super().__init__(
            total=total,
            initial=done,
            desc=name,
            unit=unit,
            leave=False,
            smoothing=0.05,
            delay=delay,
            ascii=False if notebook else None,  # None asks the file, which in a notebook has no encoding
            ncols=WIDTH if notebook else None,
            dynamic_ncols=not notebook,
            bar_format=ENDLESS if total is None else FORMAT,
            file=io.StringIO() if notebook else sys.stderr,
            disable=(None if not notebook else False) if shown and sys.stderr is not None else True,
        )

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """What draws a line: tqdm's own on a terminal, an output of the cell in a notebook."""
        return _cell_printer() if in_notebook() else tqdm.status_printer(file)

    @property
    def format_dict(self) -> dict[str, Any]:
        """What the format is filled with: tqdm's own, the speed, and the time left."""
        known = super().format_dict
        done, seconds = known["n"] - known["initial"], known["elapsed"]
        rate = known["rate"] or (done / seconds if seconds else 0.0)
        speed = f", {_short(rate * self.photos)} photos/s" if rate and self.photos else ""
        left = (known["total"] - known["n"]) / rate if known["total"] and rate else None
        return known | {
            "speed": speed,
            "left": "" if left is None else f", {self.format_interval(left)} left",
        }

    def note(self, text: str) -> None:
        """Show a figure beside the count from the next update on."""
        self.set_postfix_str(text, refresh=False)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def _cell_printer() -> Callable[[str], None]:
    from IPython.display import HTML, display

    handle = display(HTML(""), display_id=True)

    def show(line: str) -> None:
        handle.update(HTML(f'<pre style="{STYLE}">{escape(line.strip())}</pre>' if line.strip() else ""))

    return show


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"
