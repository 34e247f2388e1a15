"""Charts of series over time as values: what is drawn, where on an SVG of fixed size, what it says, and the same as a table.

Made from numbers alone; templates write the SVG. A script may draw a long one again on a canvas, from its table.
"""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from mmserver.web.figures import rfc3339

LEFT, RIGHT, TOP, BOTTOM = 70.0, 468.0, 10.0, 214.0
LONG_FROM = 25
"""From so many points on a script draws it, so that it can be read off and zoomed."""
_N_TICKS = 5
_EDGE = 4.0
"""Beyond the last point, so that its dot is covered too."""
_MOST_TIME_TICKS = 4
_TIME_STEPS_S = (60, 300, 900, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400, 2 * 86400, 7 * 86400, 14 * 86400, 30 * 86400)
_SHOWN_WIDTHS = 3.0
"""An area is shown whole where it is at most so many times as wide as at its end; what is wider is cut off at the frame."""

Value = float | None
Place = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Line:
    """One series; `kind` is its look: control, treatment, effect or total."""

    name: str
    kind: str
    values: Sequence[Value]


@dataclass(frozen=True, slots=True)
class Area:
    """What lies between two series."""

    name: str
    kind: str
    lower: Sequence[Value]
    upper: Sequence[Value]


@dataclass(frozen=True, slots=True)
class Level:
    """A line across: zero, a goal, a limit or a plan."""

    name: str
    kind: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart, with what it says in one sentence.

    Fields:
        unit: of all its values. n_early: so many points from the first were before the minimums. has_looks: each point is a
            look, and is marked.
    """

    name: str
    title: str
    takeaway: str
    unit: str
    moments: Sequence[datetime]
    lines: Sequence[Line]
    areas: Sequence[Area] = ()
    levels: Sequence[Level] = ()
    n_early: int = 0
    has_looks: bool = False
    drawing: "Drawing" = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "drawing", _drawing(self))

    @property
    def is_long(self) -> bool:
        """Whether it is worth a canvas."""
        return len(self.moments) >= LONG_FROM

    @property
    def columns(self) -> list[tuple[str, str, Sequence[Value]]]:
        """Of its table: heading, what it is for the script, and values; lines first, then both edges of each area."""
        found = [(line.name, f"line {line.kind}", line.values) for line in self.lines]
        for area in self.areas:
            found.append((f"{area.name}, from", f"lower {area.kind}", area.lower))
            found.append((f"{area.name}, to", f"upper {area.kind}", area.upper))
        return found

    @property
    def rows(self) -> list[tuple[datetime, list[Value]]]:
        """Of its table."""
        columns = [values for _, _, values in self.columns]
        return [(moment, [values[place] for values in columns]) for place, moment in enumerate(self.moments)]

    @property
    def csv(self) -> str:
        """The same with all digits; what is not known is left empty."""
        written = io.StringIO()
        writer = csv.writer(written, lineterminator="\n")
        writer.writerow(["time", *(f"{name} ({self.unit})" for name, _, _ in self.columns)])
        for moment, values in self.rows:
            writer.writerow([rfc3339(moment), *("" if value is None else repr(value) for value in values)])
        return written.getvalue()


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis, with its text."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """Where everything is on the SVG: paths' data by the look that they get."""

    y_ticks: list[Tick]
    x_ticks: list[Tick]
    areas: list[tuple[str, str]]
    lines: list[tuple[str, str]]
    dots: list[tuple[str, float, float]]
    levels: list[tuple[str, float]]
    looks: str
    early_until: float | None


def _drawing(chart: Chart) -> Drawing:
    if not chart.moments:
        return Drawing([], [], [], [], [], [], "", None)
    low, high = _range(chart)
    times = [moment.timestamp() for moment in chart.moments]
    span = times[-1] - times[0]

    def x_of(time: float) -> float:
        return (LEFT + RIGHT) / 2.0 if span <= 0.0 else LEFT + (time - times[0]) / span * (RIGHT - LEFT)

    def y_of(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return BOTTOM - share * (BOTTOM - TOP)

    xs = [x_of(time) for time in times]
    is_short = len(times) < LONG_FROM
    return Drawing(
        y_ticks=[Tick(y_of(value), _tick_text(value)) for value in _nice(low, high)],
        x_ticks=[Tick(x_of(at.timestamp()), text) for at, text in _time_ticks(chart.moments[0], chart.moments[-1])],
        areas=[(area.kind, _area_path(xs, area, y_of)) for area in chart.areas],
        lines=[(line.kind, _path(xs, line.values, y_of)) for line in chart.lines],
        dots=[
            (line.kind, x, y_of(value))
            for line in chart.lines
            for x, value in zip(xs, line.values, strict=True)
            if is_short and value is not None
        ],
        levels=[(level.kind, y_of(level.value)) for level in chart.levels],
        looks="".join(f"M{x:.1f} {BOTTOM:.1f}v-5" for x in xs) if chart.has_looks else "",
        early_until=_early_until(xs, chart.n_early),
    )


def _early_until(xs: Sequence[float], n_early: int) -> float | None:
    """Halfway to the first point that counts."""
    if not n_early:
        return None
    return RIGHT + _EDGE if n_early >= len(xs) else (xs[n_early - 1] + xs[n_early]) / 2.0


def _range(chart: Chart) -> tuple[float, float]:
    """From where to where the values go; an area that was much wider at first does not flatten all the rest."""
    known = [value for line in chart.lines for value in line.values[chart.n_early :] if value is not None]
    known = known or [value for line in chart.lines for value in line.values if value is not None]
    known += [level.value for level in chart.levels]
    for area in chart.areas:
        pairs = [
            (lower, upper)
            for lower, upper in zip(area.lower, area.upper, strict=True)
            if lower is not None and upper is not None
        ]
        most = _SHOWN_WIDTHS * (pairs[-1][1] - pairs[-1][0]) if pairs else 0.0
        known += [edge for pair in pairs if pair[1] - pair[0] <= most for edge in pair]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        low, high = low - (abs(low) or 1.0) / 2.0, high + (abs(high) or 1.0) / 2.0
    margin = 0.05 * (high - low)
    return (0.0 if low == 0.0 else low - margin), high + margin


def _path(xs: Sequence[float], values: Sequence[Value], y_of: Place) -> str:
    parts, is_drawing = [], False
    for x, value in zip(xs, values, strict=True):
        if value is not None:
            parts.append(f"{'L' if is_drawing else 'M'}{x:.1f} {y_of(value):.1f}")
        is_drawing = value is not None
    return "".join(parts)


def _area_path(xs: Sequence[float], area: Area, y_of: Place) -> str:
    points = [
        (x, lower, upper)
        for x, lower, upper in zip(xs, area.lower, area.upper, strict=True)
        if lower is not None and upper is not None
    ]
    if len(points) == 1:  # a single one is a bar
        x, lower, upper = points[0]
        points = [(x - 3.0, lower, upper), (x + 3.0, lower, upper)]
    edge = [f"{x:.1f} {y_of(upper):.1f}" for x, _, upper in points]
    edge += [f"{x:.1f} {y_of(lower):.1f}" for x, lower, _ in reversed(points)]
    return f"M{'L'.join(edge)}Z" if edge else ""


# --- ticks --------------------------------------------------------------------------------------------------------------


def _nice(low: float, high: float) -> list[float]:
    """Round numbers from low to high."""
    raw = (high - low) / _N_TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= raw * (1.0 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick_text(value: float) -> str:
    if not value:
        return "0"
    text = f"{value:,.0f}" if abs(value) >= 1000.0 else f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}", 1) if value < 0 else text


def _time_ticks(first: datetime, last: datetime) -> list[tuple[datetime, str]]:
    span_s = (last - first).total_seconds()
    step = next((step for step in _TIME_STEPS_S if span_s / step <= _MOST_TIME_TICKS), None)
    if step is None:
        step = math.ceil(span_s / _MOST_TIME_TICKS / 86400) * 86400
    if span_s <= 0.0:
        return [(first, f"{first.astimezone(UTC):%m-%d %H:%M}")]
    start = math.ceil(first.timestamp() / step) * step
    n = int((last.timestamp() - start) // step) + 1
    shown = "%m-%d" if step >= 86400 else "%m-%d %H:%M" if span_s > 86400 else "%H:%M"
    found = [datetime.fromtimestamp(start, UTC) + timedelta(seconds=step * place) for place in range(n)]
    return [(at, f"{at:%m-%d}" if not (at.hour or at.minute) else f"{at:{shown}}") for at in found]
