"""The chart of latencies: a row for each candidate, its p50 as a dot with 95% whiskers.

Drawn with positions in percent, so that text keeps its size on any width. Standing is told by the
shape of the dot and a word beside it, never by colour alone.
"""

import math
from dataclasses import dataclass

from deploy.report.facts import Candidate, Report, list_rows, winner_of
from deploy.report.markup import Markup, element, join
from deploy.report.wording import format_interval, format_number, format_ratio

_HEIGHT = 34
_LOG_FROM = 5.0
_NARROWEST = 2.5
_SHAPES = {
    "baseline": "M-5,-5H5V5H-5Z",
    "winner": "M0,-8L8,0L0,8L-8,0Z",
    "ok": "M-5,0A5,5 0 1 0 5,0A5,5 0 1 0 -5,0Z",
    "rejected": "M-5,-5L5,5M5,-5L-5,5",
    "failed": "M0,-6L6,5H-6Z",
    "not run": "M-5,0H5",
}


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    logarithmic: bool

    def place(self, value: float) -> float:
        """Percent of the width."""
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return 2 + 95 * min(1.0, max(0.0, share))

    def percent(self, value: float) -> str:
        return f"{self.place(value):.2f}%"

    def ticks(self) -> list[float]:
        if self.logarithmic:
            return _log_ticks(self.low, self.high)
        step = _round_step(self.high / 4)
        return [step * index for index in range(int(self.high / step + 1e-9) + 1)]


def draw_latency(report: Report) -> Markup:
    """The chart, its axis and what had no time; empty where nothing was timed."""
    timed = [(c, standing) for c, standing in list_rows(report) if c["latency"] is not None]
    timed = [(c, s) for c, s in timed if c["latency"]["p50_ms"] > 0]
    if not timed:
        return element("p", "Nothing was timed.", class_="quiet")
    scale = _fit_scale([c["latency"] for c, _ in timed])
    base = report["baseline"]["latency"]
    reference = base["p50_ms"] if base else None
    winner = winner_of(report)["name"]
    rows = [_row(c, standing, winner, scale, reference) for c, standing in timed]
    kind = "log scale" if scale.logarithmic else "linear scale"
    caption = (
        f"p50 in ms, {kind}, left is faster. Whiskers are 95% intervals; "
        "without them the interval is narrower than the mark."
    )
    return element(
        "figure",
        element("div", *rows, _axis(scale), class_="chart"),
        element("figcaption", caption, element("span", _without_time(report))),
    )


def status_glyph(standing: str) -> Markup:
    """The shape of `standing` as it stands in the chart, for use in a line of text."""
    mark = element("path", d=_SHAPES.get(standing, _SHAPES["ok"]), class_=_mark_class(standing))
    return element("svg", mark, class_="glyph", viewBox="-9 -9 18 18", aria_hidden="true")


def _row(
    candidate: Candidate, standing: str, winner: str, scale: _Scale, reference: float | None
) -> Markup:
    latency, won = candidate["latency"], candidate["name"] == winner
    shape = standing if standing == "baseline" or not won else "winner"
    p50 = f"{format_number(latency['p50_ms'])} ms"
    interval = format_interval(latency["p50_ci95"], format_number, between=" to ")
    speedup = Markup(f"{format_ratio(latency['speedup'])}×")
    word = "winner" if won else standing
    label = f"{candidate['name']}, {word}: p50 {p50}, 95% {interval}"
    plot = element(
        "svg",
        element("title", label),
        *_grid(scale, reference),
        *_whisker(latency, scale, reference),
        element(
            "svg",
            element("path", d=_SHAPES.get(shape, _SHAPES["ok"]), class_=_mark_class(shape)),
            x=scale.percent(latency["p50_ms"]),
            y=_HEIGHT // 2,
            overflow="visible",
        ),
        class_="plot",
        height=_HEIGHT,
        role="img",
        aria_label=label,
    )
    name = element(
        "div", element("b", candidate["name"]), " ", element("small", word), class_="who"
    )
    value = element("div", p50, element("b", speedup), class_="value")
    return element("div", name, plot, value, class_="row won" if won else "row")


def _grid(scale: _Scale, reference: float | None) -> list[Markup]:
    def rule(value: float, class_: str) -> Markup:
        at = scale.percent(value)
        return element("line", x1=at, x2=at, y1=0, y2=_HEIGHT, class_=class_)

    lines = [rule(value, "grid") for value in scale.ticks()]
    return lines if reference is None else [*lines, rule(reference, "reference")]


def _whisker(latency: Candidate, scale: _Scale, reference: float | None) -> list[Markup]:
    middle = _HEIGHT // 2
    low, high = (scale.place(value) for value in latency["p50_ci95"])
    lines = []
    if reference is not None:
        at, to = scale.percent(latency["p50_ms"]), scale.percent(reference)
        lines.append(element("line", x1=at, x2=to, y1=middle, y2=middle, class_="stem"))
    if high - low >= _NARROWEST:
        left, right = f"{low:.2f}%", f"{high:.2f}%"
        ends = ((left, right, 0), (left, left, 8), (right, right, 8))
        for x1, x2, half in ends:
            y1, y2 = middle - half, middle + half
            lines.append(element("line", x1=x1, x2=x2, y1=y1, y2=y2, class_="whisker"))
    return lines


def _axis(scale: _Scale) -> Markup:
    labels = [
        element("text", f"{value:g}", x=scale.percent(value), y=14, text_anchor="middle")
        for value in scale.ticks()
    ]
    axis = element("svg", *labels, class_="plot axis", height=20, aria_hidden="true")
    unit = element("div", "ms", class_="value")
    return element("div", element("div", class_="who"), axis, unit, class_="row scale")


def _without_time(report: Report) -> Markup:
    names = [f"{c['name']} ({s})" for c, s in list_rows(report) if c["latency"] is None]
    return join(f" Not timed: {', '.join(names)}.") if names else join()


def _fit_scale(latencies: list[Candidate]) -> _Scale:
    values = [v for item in latencies for v in (item["p50_ms"], *item["p50_ci95"]) if v > 0]
    low, high = min(values), max(values)
    if high / low < _LOG_FROM:
        return _Scale(0.0, 1.04 * high, logarithmic=False)
    floor = 10.0 ** math.floor(math.log10(low / 1.1))
    start = max(step * floor for step in (1, 2, 5) if step * floor <= low / 1.1)
    return _Scale(start, high * 1.1, logarithmic=True)


def _log_ticks(low: float, high: float) -> list[float]:
    decades = math.log10(high / low)
    steps = (1, 2, 5) if decades < 1.8 else (1, 3) if decades < 3 else (1,)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    return [round(tick, 12) for tick in every if 0.999 * low <= tick <= high]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= rough))


def _mark_class(standing: str) -> str:
    return f"mark {standing.replace(' ', '-')}" if standing in _SHAPES else "mark ok"
