"""Charts as SVG within HTML. Their colours are those of the page's theme."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 400, 250  # of a chart; the page scales it
LEFT, RIGHT, ABOVE, BELOW = 52, 20, 10, 42  # margins
MOST_DOTS = 30  # points up to which each one is marked


@dataclass(frozen=True)
class Axis:
    """One direction of a chart. ticks: values with their labels. name: what the values are."""

    name: str
    low: float
    high: float
    ticks: Mapping[float, str]

    def share(self, value: float) -> float:
        """Where a value is: 0 at the beginning of the axis, 1 at its end."""
        return (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Line:
    """Points (x, y) joined by a line. kind: its class in the style sheet."""

    kind: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Bar:
    """A bar from `start` to `end`, as high as `height`. about: is shown under the pointer."""

    start: float
    end: float
    height: float
    about: str


def percent(share: float) -> str:
    """A share in %, with as many digits as it needs."""
    return f"{round(100 * share, 4):g}%"


def fitted_axis(name: str, values: Sequence[float], *, whole: bool = False, shares: bool = False) -> Axis:
    """An axis for some values, with round ticks. whole: they are whole numbers. shares: they are in [0, 1]."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    ticks = [float(tick) for tick in MaxNLocator(6, integer=whole, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    if whole:  # it begins and ends with a value
        return Axis(name, low, high, {tick: f"{tick:g}" for tick in ticks if low <= tick <= high})
    if shares:
        ticks = [tick for tick in ticks if -1e-9 <= tick <= 1 + 1e-9]
        return Axis(name, min(low, ticks[0]), max(min(high, 1), ticks[-1]), {tick: percent(tick) for tick in ticks})
    return Axis(name, ticks[0], ticks[-1], {tick: f"{tick:g}" for tick in ticks})


def share_axis(name: str) -> Axis:
    """An axis from 0 to 100 %."""
    return Axis(name, 0, 1, {share / 4: percent(share / 4) for share in range(5)})


def chart(x: Axis, y: Axis, marks: Sequence[Line | Bar], label: str, about: Sequence[tuple[float, str]] = ()) -> str:
    """A chart as SVG. label: says what it shows, to those who do not see it. about: texts under the pointer, by x."""

    def across(value: float) -> str:
        return f"{LEFT + x.share(value) * (WIDTH - LEFT - RIGHT):.1f}"

    def down(value: float) -> str:
        return f"{HEIGHT - BELOW - y.share(value) * (HEIGHT - ABOVE - BELOW):.1f}"

    bottom, end = HEIGHT - BELOW, WIDTH - RIGHT
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for value, text in y.ticks.items():
        place = down(value)
        parts.append(f'<path class="grid" d="M{LEFT} {place}H{end}"/>')
        parts.append(f'<text class="y" x="{LEFT - 6}" y="{place}">{escape(text)}</text>')
    for value, text in x.ticks.items():
        parts.append(f'<text class="x" x="{across(value)}" y="{bottom + 16}">{escape(text)}</text>')
    parts.append(f'<text class="x" x="{(LEFT + end) / 2}" y="{HEIGHT - 6}">{escape(x.name)}</text>')
    parts.append(
        f'<text class="x" transform="translate(11 {(ABOVE + bottom) / 2}) rotate(-90)">{escape(y.name)}</text>'
    )
    for mark in marks:
        if isinstance(mark, Bar):
            left, top, width = (
                across(mark.start),
                down(mark.height),
                float(across(mark.end)) - float(across(mark.start)),
            )
            shape = f'<rect class="bar" x="{left}" y="{top}" width="{width:.1f}" height="{bottom - float(top):.1f}">'
            parts.append(f"{shape}<title>{escape(mark.about)}</title></rect>")
            continue
        places = [(across(one), down(other)) for one, other in mark.points if math.isfinite(one + other)]
        parts.append(f'<polyline class="{mark.kind}" points="{" ".join(map(",".join, places))}"/>')
        if mark.kind != "rule" and len(places) <= MOST_DOTS:
            parts += [f'<circle class="{mark.kind}" cx="{one}" cy="{other}" r="2.5"/>' for one, other in places]
    # A band around each value, since a point is too small to be met by a pointer.
    for index, (value, text) in enumerate(about):
        start = (value + about[max(0, index - 1)][0]) / 2
        stop = (value + about[min(len(about) - 1, index + 1)][0]) / 2
        left, width = across(start), max(4, float(across(stop)) - float(across(start)))
        shape = f'<rect class="band" x="{left}" y="{ABOVE}" width="{width:.1f}" height="{bottom - ABOVE}">'
        parts.append(f"{shape}<title>{escape(text)}</title></rect>")
    return "".join([*parts, f'<path class="base" d="M{LEFT} {bottom}H{end}"/></svg>'])
