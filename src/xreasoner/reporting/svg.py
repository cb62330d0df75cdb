"""Small pictures as inline SVG: pure functions from numbers to markup.

Colours are classes (`t0`, `t1`, … for the stages) that the page's style sheet fills in for light and dark. Widths
are those of a panel about as wide as a phone; a strip uses percentages, so that it fills any row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup, escape

WIDTH = 260
_LEFT, _RIGHT = 34, 254


class Bar(NamedTuple):
    """One bar: shares from 0 to 1, with the interval's ends and, where measured, the blind floor."""

    label: str
    value: float
    low: float
    high: float
    blind: float | None
    tone: int


class Line(NamedTuple):
    """One curve: points (x, y) and its name and tone."""

    name: str
    tone: int
    points: Sequence[tuple[float, float]]


def percent(share: float) -> str:
    """0.1234 → "12.3"."""
    return f"{100 * share:.1f}"


def _svg(height: int, label: str, body: Sequence[str]) -> Markup:
    inside = Markup("").join(Markup(part) for part in body)
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(WIDTH, height, label, inside)


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def bars(title: str, entries: Sequence[Bar]) -> Markup:
    """Accuracies from 0 to 100 % as bars, with whiskers for the interval and a dashed line for the blind floor."""
    top, bottom = 22.0, 152.0

    def y(share: float) -> float:
        return bottom - (bottom - top) * min(1.0, max(0.0, share))

    body = []
    for tick in (0, 25, 50, 75, 100):
        at = y(tick / 100)
        body.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        body.append(_text(_LEFT - 5, at + 3.5, str(tick), "end", "tick"))
    slot = (_RIGHT - _LEFT) / max(1, len(entries))
    width = min(38.0, 0.62 * slot)
    for index, bar in enumerate(entries):
        body += _bar(bar, _LEFT + slot * (index + 0.5), width, y, raised=len(entries) > 4 and index % 2 == 1)
    numbers = "; ".join(
        f"{b.label} {percent(b.value)} % ({percent(b.low)} to {percent(b.high)})"
        + (f", blind floor {percent(b.blind)} %" if b.blind is not None else "")
        for b in entries
    )
    return _svg(180, f"{title}: {numbers}", body)


def _bar(bar: Bar, x: float, width: float, y: Callable[[float], float], raised: bool) -> list[str]:
    left, right = x - width / 2, x + width / 2
    body = [
        f'<rect class="bar t{bar.tone}" x="{left:.1f}" y="{y(bar.value):.1f}" width="{width:.1f}" '
        f'height="{max(0.5, y(0) - y(bar.value)):.1f}"/>',
        f'<path class="whisker" d="M{x:.1f} {y(bar.low):.1f}V{y(bar.high):.1f}'
        f'M{x - 4:.1f} {y(bar.low):.1f}h8M{x - 4:.1f} {y(bar.high):.1f}h8"/>',
        _text(x, y(max(bar.high, bar.blind or 0.0)) - 5, percent(bar.value), kind="value"),
        _text(x, y(0) + (24 if raised else 14), bar.label, kind="name"),
    ]
    if bar.blind is not None:
        at = y(bar.blind)
        body.append(f'<line class="blind" x1="{left - 5:.1f}" x2="{right + 5:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>')
    return body


def strip(low: float, value: float, high: float, span: tuple[float, float], sure: bool, tone: int) -> Markup:
    """A dot with its whisker on an axis that spans the whole width; hollow where it is not distinguishable."""

    def x(number: float) -> str:
        return f"{100 * (min(max(number, span[0]), span[1]) - span[0]) / (span[1] - span[0]):.2f}%"

    kind = f"dot t{tone}" + ("" if sure else " hollow")
    return Markup(
        f'<svg class="strip" height="22" aria-hidden="true"><line class="zero" x1="{x(0)}" x2="{x(0)}" y1="0" y2="22"/>'
        f'<line class="whisker t{tone}" x1="{x(low)}" x2="{x(high)}" y1="11" y2="11"/>'
        f'<circle class="{kind}" cx="{x(value)}" cy="11" r="5"/></svg>'
    )


def strip_axis(span: tuple[float, float], scale: float = 1.0) -> Markup:
    """The numbers under the strips of one span; scale turns shares into points."""
    body = []
    for tick in ticks(span[0] * scale, span[1] * scale, 5):
        x = 100 * (tick / scale - span[0]) / (span[1] - span[0])
        anchor = "start" if x < 4 else "end" if x > 96 else "middle"
        body.append(f'<text class="tick" x="{x:.2f}%" y="13" text-anchor="{anchor}">{number(tick)}</text>')
    return Markup('<svg class="strip" height="18" aria-hidden="true">{}</svg>').format(Markup("".join(body)))


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers from low to high, about so many, a step of 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    step = _step(low, high, wanted)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _step(low: float, high: float, wanted: int) -> float:
    raw = (high - low) / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)


def number(value: float) -> str:
    """A short number for an axis, with a true minus sign."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")
    return (f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}").replace("-", "−")


def thin(points: Sequence[tuple[float, float]], most: int = 160) -> list[tuple[float, float]]:
    """At most so many points: means of neighbours. Points that are no finite numbers are left out."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    size = max(1, -(-len(finite) // most))
    parts = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A centred running mean over about a twelfth of the points."""
    half = len(points) // 24
    means = []
    for index, (x, _) in enumerate(points):
        near = points[max(0, index - half) : index + half + 1]
        means.append((x, sum(y for _, y in near) / len(near)))
    return means


class _Frame(NamedTuple):
    """Where numbers lie in a curve's panel."""

    x0: float
    x1: float
    y0: float
    y1: float

    def at(self, x: float, y: float) -> str:
        across = _LEFT + (_RIGHT - _LEFT) * (x - self.x0) / ((self.x1 - self.x0) or 1)
        down = 104 - 94 * (y - self.y0) / ((self.y1 - self.y0) or 1)
        return f"{across:.1f},{down:.1f}"

    def axes(self) -> list[str]:
        body = []
        for tick in ticks(self.y0, self.y1, 3):
            down = float(self.at(self.x0, tick).split(",")[1])
            body.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{down}" y2="{down}"/>')
            body.append(_text(_LEFT - 5, down + 3.5, number(tick), "end", "tick"))
        body.append(_text(_LEFT, 118, f"step {number(self.x0)}", "start", "tick"))
        body.append(_text(_RIGHT, 118, number(self.x1), "end", "tick"))
        return body


def _span(ys: Sequence[float]) -> tuple[float, float]:
    """An axis that holds 0 and all values and ends at round numbers."""
    low, high = min(0.0, *ys), max(0.0, *ys)
    if not high > low:
        return 0.0, 1.0
    step = _step(low, high, 3)
    return step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)


def curves(title: str, lines: Sequence[Line]) -> Markup:
    """Curves over steps: the measured points faint, their running mean bold. The axis starts at 0 for what is ≥ 0."""
    kept = [Line(line.name, line.tone, thin(line.points)) for line in lines]
    every = [point for line in kept for point in line.points]
    if not every:
        return Markup("")
    steps = [x for line in lines for x, _ in line.points]
    frame = _Frame(min(steps), max(steps), *_span([y for _, y in every]))
    body = frame.axes()
    for line in kept:
        for kind, points in (("raw", line.points), ("mean", smooth(line.points))):
            path = " ".join(frame.at(x, y) for x, y in points)
            body.append(f'<polyline class="{kind} t{line.tone}" points="{path}"/>')
    last = "; ".join(f"{line.name} ends at {number(smooth(line.points)[-1][1])}" for line in kept if line.points)
    return _svg(124, f"{title} over steps: {last}", body)


def budget_curve(title: str, stages: Sequence[tuple[str, int, Sequence[Mapping[str, float]]]]) -> Markup:
    """Accuracy over the thinking budget (tokens, on a logarithmic axis), with whiskers; dashed: what it would be with
    every thought that was closed by force cut off instead. stages: (name, tone, points of `summary.budgets`).
    """
    budgets = sorted({point["budget"] for _, _, points in stages for point in points})
    frame = _Frame(math.log2(budgets[0]), math.log2(budgets[-1]), 0.0, 1.0)
    body = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        down = float(frame.at(frame.x0, tick).split(",")[1])
        body.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{down}" y2="{down}"/>')
        body.append(_text(_LEFT - 5, down + 3.5, f"{100 * tick:.0f}", "end", "tick"))
    for budget in budgets if len(budgets) < 7 else (budgets[0], budgets[-1]):
        across = float(frame.at(math.log2(budget), 0).split(",")[0])
        body.append(_text(across, 118, f"{budget:g}", "end" if budget == budgets[-1] else "middle", "tick"))
    for _, tone, points in stages:
        for kind, key in (("mean", "accuracy"), ("mean cut", "without_exit")):
            path = " ".join(frame.at(math.log2(point["budget"]), point[key]) for point in points)
            body.append(f'<polyline class="{kind} t{tone}" points="{path}"/>')
        for point in points:
            x, low = frame.at(math.log2(point["budget"]), point["low"]).split(",")
            high = frame.at(math.log2(point["budget"]), point["high"]).split(",")[1]
            body.append(f'<line class="whisker t{tone}" x1="{x}" x2="{x}" y1="{low}" y2="{high}"/>')
    said = "; ".join(
        f"{name}: " + ", ".join(f"{p['budget']:g} tokens {percent(p['accuracy'])} %" for p in points)
        for name, _, points in stages
    )
    return _svg(124, f"{title}, accuracy by thinking budget: {said}", body)


def rules(title: str, entry: Mapping[str, Any]) -> Markup:
    """One kind of answer under each rule: a dot for the score, hollow for the score without its guesses, a cross for
    what empty replies would get; shaded, the sampling error around our score.
    """
    ours, error = entry["rules"][0]["score"], entry["error"]
    left, right, step = 92.0, 250.0, 17.0

    def x(share: float) -> float:
        return left + (right - left) * min(1.0, max(0.0, share))

    height = 8 + step * len(entry["rules"])
    low, high = x(ours - error), x(ours + error)
    body = [f'<rect class="band" x="{low:.1f}" y="2" width="{high - low:.1f}" height="{height - 4:.1f}"/>']
    for index, rule in enumerate(entry["rules"]):
        y = 14 + step * index
        body.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        body.append(_text(left - 8, y + 3.5, rule["rule"], "end", "name"))
        if rule["guessed"]:
            body.append(f'<circle class="dot t1 hollow" cx="{x(rule["read"]):.1f}" cy="{y}" r="3.5"/>')
        body.append(f'<circle class="dot t{2 if index == 0 else 3}" cx="{x(rule["score"]):.1f}" cy="{y}" r="4"/>')
        if rule["empty"]:
            at = x(rule["empty"])
            body.append(f'<path class="empty" d="M{at - 3:.1f} {y - 3}l6 6m0 -6l-6 6"/>')
    for tick in (0, 0.5, 1):
        body.append(_text(x(tick), height + 9, f"{100 * tick:.0f}", "middle", "tick"))
    said = "; ".join(
        f"{rule['rule']} {percent(rule['score'])} %, empty {percent(rule['empty'])} %" for rule in entry["rules"]
    )
    return _svg(int(height + 14), f"{title}: {said}", body)


def stacked(title: str, lines: Sequence[Line]) -> Markup:
    """Shares that sum to 1, one on top of the other; all lines must have the same steps."""
    kept = [Line(line.name, line.tone, thin(line.points)) for line in lines]
    if not kept or not kept[0].points:
        return Markup("")
    xs = [x for x, _ in kept[0].points]
    frame = _Frame(lines[0].points[0][0], lines[0].points[-1][0], 0.0, 1.0)
    body, base = [], [0.0] * len(xs)
    for line in kept:
        top = [floor + y for floor, (_, y) in zip(base, line.points, strict=True)]
        outline = [frame.at(x, y) for x, y in zip(xs, top, strict=True)]
        outline += [frame.at(x, y) for x, y in zip(reversed(xs), reversed(base), strict=True)]
        body.append(f'<polygon class="area t{line.tone}" points="{" ".join(outline)}"/>')
        base = top
    last = "; ".join(f"{line.name} ends at {number(smooth(line.points)[-1][1])}" for line in kept)
    return _svg(124, f"{title} over steps: {last}", body + frame.axes())
