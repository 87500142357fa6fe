"""Line and bar charts as SVG for documents: axes (also logarithmic), limits, legends; no dependencies.

The same data give the same text. Pictures have a white ground, so that they read on dark pages too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

from plancc.show.html import escape

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#444444")
"""Colours that people with any kind of colour vision tell apart (Okabe and Ito), and two more."""
MARKS = ("circle", "square", "triangle", "diamond")
TEXT, FAINT, GRID, ALERT = "#222222", "#888888", "#dddddd", "#cc0000"
LEFT, TOP, GAP, BOTTOM, KEYS = 72, 40, 74, 56, 270
"""Pixels: left of charts, above the first, from one to the next, below the last, the legend's width."""


@dataclass(frozen=True, slots=True)
class Line:
    """A curve through points (x, y), in order. Without a colour it gets one of its own, and a mark.

    `mark` is circle, square, triangle, diamond or "" (none). `dash` is as SVG has it ("6 3"), `shift`
    where it begins. `key` is whether the legend names it.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: str = ""
    width: float = 2
    dash: str = ""
    shift: float = 0
    opacity: float = 1
    mark: str = ""
    key: bool = True


@dataclass(frozen=True, slots=True)
class Bars:
    """One bar for each label; several stand beside each other."""

    name: str
    values: Sequence[float]
    colour: str = ""


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis shows: its text, whether it is logarithmic, its ends and ticks (None: from the data)."""

    text: str = ""
    log: bool = False
    low: float | None = None
    high: float | None = None
    ticks: Sequence[tuple[float, str]] | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines, or bars over `labels`; `limits` are (value, text) of dashed lines across."""

    title: str
    lines: Sequence[Line] = ()
    bars: Sequence[Bars] = ()
    labels: Sequence[str] = ()
    x: Axis = Axis()
    y: Axis = Axis()
    limits: Sequence[tuple[float, str]] = ()
    height: float = 250


@dataclass(frozen=True, slots=True)
class Key:
    """One line of a legend."""

    name: str
    colour: str
    width: float = 2
    opacity: float = 1
    dash: str = ""
    mark: str = ""


def picture(charts: Sequence[Chart], keys: Sequence[Key] | None = None, width: float = 960) -> str:
    """The charts below each other, with one legend at their right; `keys` are made from them if not given.

    ValueError for values that a logarithmic axis cannot show, and for charts without values.
    """
    coloured = [with_colours(chart) for chart in charts]
    found = list(keys) if keys is not None else keys_of(coloured)
    room = width - LEFT - (KEYS if found else 30) - 60
    out: list[str] = []
    top = float(TOP)
    for chart in coloured:
        frame = framed(chart, top, room)
        out += frame.draw()
        top += chart.height + GAP + (24 if chart.x.text else 0)
    height = max(top - GAP + BOTTOM, TOP + 20 * len(found) + BOTTOM)
    out += legend(found, width - KEYS, TOP + 12)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" font-family="sans-serif" font-size="12" fill="{TEXT}">'
    )
    ground = f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>'
    return "\n".join([head, ground, *out, "</svg>"]) + "\n"


def with_colours(chart: Chart) -> Chart:
    """The chart with a colour for everything."""
    lines = tuple(
        line
        if line.colour
        else Line(
            line.name, line.points, COLOURS[at % len(COLOURS)], line.width, line.dash, line.shift,
            line.opacity, line.mark or MARKS[at % len(MARKS)], line.key,
        )
        for at, line in enumerate(chart.lines)
    )  # fmt: skip
    bars = tuple(
        Bars(bar.name, bar.values, bar.colour or COLOURS[at % len(COLOURS)])
        for at, bar in enumerate(chart.bars)
    )
    return Chart(
        chart.title, lines, bars, chart.labels, chart.x, chart.y, chart.limits, chart.height
    )


def keys_of(charts: Sequence[Chart]) -> list[Key]:
    """A key for each name, in the order in which they come up; none for a single unnamed curve."""
    found: dict[str, Key] = {}
    for chart in charts:
        for one in chart.lines:
            if one.key and one.name:
                found.setdefault(
                    one.name, Key(one.name, one.colour, one.width, one.opacity, one.dash, one.mark)
                )
        for bar in chart.bars:
            found.setdefault(bar.name, Key(bar.name, bar.colour, 10))
    return list(found.values())


def legend(keys: Sequence[Key], left: float, top: float) -> Iterator[str]:
    """What colours, dashes and marks mean."""
    for at, key in enumerate(keys):
        y = top + 20 * at
        yield line(left - 40, y - 4, left - 14, y - 4, key.colour, style(key))
        if key.mark:
            yield mark(key.mark, left - 27, y - 4, key.colour)
        yield f'<text x="{left - 6:g}" y="{y:g}">{escape(key.name)}</text>'


def style(one: Line | Key) -> str:
    """Width, dashes and opacity as attributes; nothing for what is usual."""
    out = f' stroke-width="{one.width:g}"' if one.width != 1 else ""
    out += f' stroke-dasharray="{escape(one.dash)}"' if one.dash else ""
    return out + (f' opacity="{one.opacity:g}"' if one.opacity != 1 else "")


@dataclass(frozen=True, slots=True)
class Scale:
    """Values from `low` to `high` on pixels from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value stands; outside the ends it is moved to them."""
        inside = min(max(value, self.low), self.high)
        if self.log:
            share = log10(inside / self.low) / log10(self.high / self.low)
        else:
            share = (inside - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)


@dataclass(frozen=True, slots=True)
class Frame:
    """A chart with its scales."""

    chart: Chart
    x: Scale
    y: Scale

    def draw(self) -> Iterator[str]:
        """Title, grid, curves or bars, limits."""
        chart, left, right, top = self.chart, self.x.start, self.x.stop, self.y.stop
        yield f'<text x="{left:g}" y="{top - 10:g}" font-weight="bold">{escape(chart.title)}</text>'
        marks = ticks(chart.y, self.y, 6)
        for value, text in marks:
            y = self.y(value)
            yield line(left, y, right, y, GRID)
            yield f'<text x="{left - 8:g}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'
        yield from self.below()
        yield line(left, self.y.start, right, self.y.start, FAINT)
        if chart.y.text:
            middle = (self.y.start + top) / 2
            away = max(12, left - 18 - 7 * max((len(text) for _, text in marks), default=0))
            yield (
                f'<text transform="translate({away:g} {middle:.1f}) rotate(-90)" '
                f'text-anchor="middle" fill="{FAINT}">{escape(chart.y.text)}</text>'
            )
        yield from self.curves()
        yield from self.bars()
        for value, text in chart.limits:
            y = self.y(value)
            yield line(left, y, right, y, ALERT, ' stroke-dasharray="6 4"')
            words = f'fill="{ALERT}" font-size="10">{escape(text)}</text>'
            yield f'<text x="{left + 40:g}" y="{y - 5:.1f}" {words}'

    def below(self) -> Iterator[str]:
        """The ticks of the x axis, or the labels of bars, and its text."""
        chart, bottom = self.chart, self.y.start
        found = ticks(chart.x, self.x, 8)
        if chart.bars:
            found = [(at + 0.5, text) for at, text in enumerate(chart.labels)]
        for value, text in found:
            x = self.x(value)
            yield f'<text x="{x:.1f}" y="{bottom + 18:g}" text-anchor="middle">{escape(text)}</text>'
        if chart.x.text:
            x = (self.x.start + self.x.stop) / 2
            words = f'fill="{FAINT}">{escape(chart.x.text)}</text>'
            yield f'<text x="{x:.1f}" y="{bottom + 38:g}" text-anchor="middle" {words}'

    def curves(self) -> Iterator[str]:
        """The lines and their marks."""
        for one in self.chart.lines:
            points = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in one.points)
            shift = f' stroke-dashoffset="{one.shift:g}"' if one.shift else ""
            yield (
                f'<polyline points="{points}" fill="none" stroke="{one.colour}"{style(one)}{shift} '
                'stroke-linejoin="round"/>'
            )
            if one.mark:
                for x, y in one.points:
                    yield mark(one.mark, self.x(x), self.y(y), one.colour)

    def bars(self) -> Iterator[str]:
        """The bars, with their values above where there is room."""
        count = len(self.chart.bars)
        for number, bar in enumerate(self.chart.bars):
            for at, value in enumerate(bar.values):
                left, right = (
                    self.x(at + 0.12 + 0.76 * (number + side) / count) for side in (0, 1)
                )
                y = self.y(value)
                yield (
                    f'<rect x="{left:.1f}" y="{y:.1f}" width="{right - left:.1f}" '
                    f'height="{self.y.start - y:.1f}" fill="{bar.colour}"/>'
                )
                if right - left >= 26:
                    yield (
                        f'<text x="{(left + right) / 2:.1f}" y="{y - 4:.1f}" text-anchor="middle" '
                        f'font-size="10">{value:.3g}</text>'
                    )


def framed(chart: Chart, top: float, room: float) -> Frame:
    """The scales of a chart that begins `top` pixels down and is `room` pixels wide."""
    heights = [y for one in chart.lines for _, y in one.points]
    heights += [value for bar in chart.bars for value in bar.values]
    if chart.bars:
        along = [0.0, float(len(chart.labels))]
        heights += [] if chart.y.log else [0.0]
        across = Axis(low=0.0, high=along[1])
    else:
        along, across = [x for one in chart.lines for x, _ in one.points], chart.x
    x_low, x_high = ends(across, along, False)
    y_low, y_high = ends(chart.y, heights, bool(chart.lines or chart.bars))
    return Frame(
        chart, Scale(x_low, x_high, LEFT, LEFT + room, across.log),
        Scale(y_low, y_high, top + chart.height, top, chart.y.log),
    )  # fmt: skip


def ends(axis: Axis, values: Sequence[float], wide: bool) -> tuple[float, float]:
    """The ends of an axis: as it says, else those of the values, made round if `wide`."""
    finite = [value for value in values if isfinite(value)]
    if not finite and (axis.low is None or axis.high is None):
        raise ValueError("a chart without values")
    low = min(finite) if axis.low is None else axis.low
    high = max(finite) if axis.high is None else axis.high
    if axis.log:
        if low <= 0:
            raise ValueError(f"a logarithmic axis cannot show {low:g}")
        if wide:
            low = low if axis.low is not None else 10.0 ** floor(log10(low))
            high = high if axis.high is not None else 10.0 ** ceil(log10(high))
        return low, high if high > low else 10 * low
    if wide and high > low:
        step = round_step(high - low, 6)
        low = low if axis.low is not None else step * floor(low / step)
        high = high if axis.high is not None else step * ceil(high / step)
    return low, high if high > low else low + (abs(low) or 1.0)


def ticks(axis: Axis, scale: Scale, count: int) -> list[tuple[float, str]]:
    """(value, text) of the ticks: as the axis says, else about `count` round ones."""
    if axis.ticks is not None:
        return list(axis.ticks)
    if axis.log:
        first, last = ceil(log10(scale.low) - 1e-9), floor(log10(scale.high) + 1e-9)
        every = max(1, ceil((last - first) / (count + 2)))
        powers = range(first, last + 1, every)
        if len(powers) < 2:
            return [(value, f"{value:g}") for value in (scale.low, scale.high)]
        form = "1e{}" if max(map(abs, powers)) > 4 else "{:g}"
        return [(10.0**at, form.format(at if form == "1e{}" else 10.0**at)) for at in powers]
    step = round_step(scale.high - scale.low, count)
    first, last = ceil(scale.low / step - 1e-9), floor(scale.high / step + 1e-9)
    return [(at * step, f"{at * step:.6g}") for at in range(first, last + 1)]


def round_step(room: float, count: int) -> float:
    """A step of 1, 2 or 5 times a power of ten that goes into `room` at most `count` times."""
    rough = room / count
    power = 10.0 ** floor(log10(rough))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= rough * 0.999)


def line(x1: float, y1: float, x2: float, y2: float, colour: str, extra: str = "") -> str:
    """A straight line."""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{extra}/>'
    )


def mark(shape: str, x: float, y: float, colour: str) -> str:
    """A mark on a point."""
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'
    corners = {
        "square": ((-3.2, -3.2), (3.2, -3.2), (3.2, 3.2), (-3.2, 3.2)),
        "triangle": ((0, -4.4), (4.2, 3.2), (-4.2, 3.2)),
        "diamond": ((0, -4.6), (4.6, 0), (0, 4.6), (-4.6, 0)),
    }[shape]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{points}" fill="{colour}"/>'
