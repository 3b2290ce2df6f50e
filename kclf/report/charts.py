"""Line charts as inline SVG: a few hundred bytes a curve, in the colours of the page, sharp at any size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 460, 240
RIGHT, TOP, BOTTOM = 12, 12, 44
NAME_ROOM, GAP, LETTER = 22, 6, 8.0  # pixels: for the name of the upright axis, to its ticks, of a digit
MOST_POINTS = 300  # of one curve: more than a pixel each
MOST_DOTS = 40
AIR = 0.04  # of the axis, beyond the first and the last point


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Args:
        name: for the legend.
        x, y: numbers, (n,); places where y is not finite are left out.
        dots: draw the points only, without a line.
        low, high: ends of an interval around each y, or None.
    """

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    dots: bool = False
    low: Sequence[float] | np.ndarray | None = None
    high: Sequence[float] | np.ndarray | None = None

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """The finite points, at most `MOST_POINTS`, the last one among them."""
        x, y = np.asarray(self.x, float), np.asarray(self.y, float)
        keep = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        if len(keep) > MOST_POINTS:
            keep = keep[np.linspace(0, len(keep) - 1, MOST_POINTS).round().astype(int)]
        return x[keep], y[keep]


@dataclass(frozen=True)
class _Axis:
    """Maps numbers to pixels along one side, and says what stands at its ticks."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    whole: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            return [10.0**power for power in range(first, last + 1, max(1, (last - first) // 5))]
        step = _nice((self.high - self.low) / 5)
        step = max(1.0, step) if self.whole else step
        first = math.ceil(self.low / step - 1e-9)
        return [step * k for k in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def power(self) -> int:
        """The power of ten that the labels have in common, which stands in the name."""
        largest = math.floor(math.log10(max(map(abs, self.ticks()), default=1.0) or 1.0))
        return 0 if self.log or -3 < largest < 5 else largest

    def labels(self) -> list[str]:
        """A label for each tick, all with as many decimals."""
        if self.log:
            return [f"1e{round(math.log10(tick))}" for tick in self.ticks()]
        scaled = [tick / 10 ** self.power() for tick in self.ticks()]
        for decimals in range(8):
            texts = [f"{number:.{decimals}f}" for number in scaled]
            if all(abs(float(t) - n) <= 1e-6 * max(1.0, abs(n)) for t, n in zip(texts, scaled, strict=True)):
                break
        return texts

    def named(self, name: str) -> str:
        return f"{name} (× 1e{power})" if (power := self.power()) else name


def line_chart(
    curves: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    y_within: tuple[float, float] = (-math.inf, math.inf),
    diagonal: bool = False,
) -> str:
    """An SVG picture of curves that shares the page's colours; `title` is what a screen reader says.

    Args:
        curves: at least one with a finite point, else the result is "".
        title: what the chart shows.
        x_label: under the chart.
        y_label: beside it.
        log_x: powers of ten along x; points with x <= 0 are left out.
        x_range, y_range: the ends of the axes; those of the points, if None.
        y_within: what the upright axis never goes beyond, such as 0 and 1 of a share.
        diagonal: draw y = x.
    """
    drawn = [(curve, *curve.points()) for curve in curves]
    drawn = [(curve, x[x > 0], y[x > 0]) if log_x else (curve, x, y) for curve, x, y in drawn]
    drawn = [entry for entry in drawn if len(entry[1])]
    if not drawn:
        return ""
    up = _axis([y for _, _, y in drawn], y_range, HEIGHT - BOTTOM, TOP, False, y_within)
    left = NAME_ROOM + GAP + LETTER * max(map(len, up.labels()), default=1)
    across = _axis([x for _, x, _ in drawn], x_range, left, WIDTH - RIGHT, log_x)
    parts = [*_grid(across, up), _words(across.named(x_label), up.named(y_label), left)]
    if diagonal:
        ends = across(up.low), up(up.low), across(up.high), up(up.high)
        parts.append('<line class="guide" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'.format(*ends))
    parts += [_curve(number, *entry, across, up) for number, entry in enumerate(drawn)]
    legend = "".join(
        f'<span class="key c{number}">{escape(curve.name)}</span>'
        for number, (curve, _, _) in enumerate(drawn)
        if len(drawn) > 1
    )
    picture = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
    return f'<figure class="chart"><figcaption>{escape(title)} {legend}</figcaption>{picture}</figure>'


def _axis(
    values: list[np.ndarray],
    given: tuple[float, float] | None,
    start: float,
    end: float,
    log: bool,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> _Axis:
    low, high = given or (min(float(v.min()) for v in values), max(float(v.max()) for v in values))
    whole = given is None and not log and all((v == np.round(v)).all() for v in values)
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
    elif given is None and not log:
        low, high = low - AIR * (high - low), high + AIR * (high - low)
    return _Axis(max(low, within[0]), min(high, within[1]), start, end, log, whole)


def _grid(across: _Axis, up: _Axis) -> list[str]:
    foot, left, parts = HEIGHT - BOTTOM, across.start, []
    for tick, text in zip(up.ticks(), up.labels(), strict=True):
        y = up(tick)
        parts.append(f'<line class="grid" x1="{left:.1f}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - GAP:.1f}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for tick, text in zip(across.ticks(), across.labels(), strict=True):
        parts.append(f'<text x="{across(tick):.1f}" y="{foot + 17}" text-anchor="middle">{text}</text>')
    return [*parts, f'<line class="axis" x1="{left:.1f}" x2="{WIDTH - RIGHT}" y1="{foot}" y2="{foot}"/>']


def _words(x_label: str, y_label: str, left: float) -> str:
    centre, middle = (left + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    return (
        f'<text x="{centre:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="rotate(-90 12 {middle})" x="12" y="{middle}" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )


def _curve(number: int, curve: Curve, x: np.ndarray, y: np.ndarray, across: _Axis, up: _Axis) -> str:
    places = [(across(float(a)), up(float(b))) for a, b in zip(x, y, strict=True)]
    parts = []
    if curve.low is not None and curve.high is not None:
        parts += [
            f'<line class="whisker c{number}" x1="{x:.1f}" x2="{x:.1f}" '
            f'y1="{up(low):.1f}" y2="{up(high):.1f}"/>'
            for (x, _), low, high in zip(places, curve.low, curve.high, strict=True)
        ]
    if not curve.dots:
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        parts.append(f'<polyline class="c{number}" points="{path}"/>')
    if curve.dots or len(places) <= MOST_DOTS:
        parts += [
            f'<circle class="c{number}" cx="{a:.1f}" cy="{b:.1f}" r="3"><title>{escape(curve.name)}: '
            f"{_short(float(v))} at {_short(float(u))}</title></circle>"
            for (a, b), u, v in zip(places, x, y, strict=True)
        ]
    return "".join(parts)


def _nice(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)


def _short(number: float) -> str:
    return f"{number:.4g}" if abs(number) >= 1e-3 or number == 0 else f"{number:.2e}".replace("e-0", "e-")
