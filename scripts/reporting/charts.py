"""Pictures of a report as inline SVG: no script, no network, colours from the page's own variables,
a text for screen readers each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Span = tuple[float, float, float]  # mean, low, high


def svg(width: int, height: int, label: str, body: Sequence[str]) -> str:
    """A picture of `width` x `height` units that scales with the page; `label` is what a screen
    reader says."""
    inner = "".join(body)
    size = "broad" if width > 600 else "narrow"
    return (
        f'<svg class="{size}" viewBox="0 0 {width} {height}" role="img"'
        f' aria-label="{escape(label)}">{inner}</svg>'
    )


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    """One line of text."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}"'
        f' text-anchor="{anchor}">{escape(content)}</text>'
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 10) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def intervals(rows: Mapping[str, tuple[Span, Sequence[float]]], highlight: str, unit: str) -> str:
    """One line a row: its name, then its mean with a 95 % interval and a dot for each single value
    behind it, then the figure. Values in [0, 1].

    No SVG: places are shares of the width, so that words keep their size on every screen.
    """
    every = [
        value
        for (mean, low, high), dots in rows.values()
        for value in (mean, low, high, *dots)
        if math.isfinite(value)
    ]
    low, high = max(0.0, min(every) - 0.02), min(1.0, max(every) + 0.02)

    def at(value: float) -> float:
        return 100 * (min(max(value, low), high) - low) / max(high - low, 1e-9)

    places = ticks(low, high)
    grid = "".join(f'<i class="grid" style="left:{at(tick):.2f}%"></i>' for tick in places)
    body = []
    for name, ((mean, least, most), dots) in rows.items():
        kind = "main" if name == highlight else "other"
        marks = [f'<i class="dot" style="left:{at(dot):.2f}%"></i>' for dot in dots]
        if math.isfinite(least):
            width = at(most) - at(least)
            marks.append(f'<i class="bar" style="left:{at(least):.2f}%;width:{width:.2f}%"></i>')
        marks.append(f'<i class="mean" style="left:{at(mean):.2f}%"></i>')
        body.append(
            f'<div class="row {kind}"><span class="name">{escape(name)}</span><span class="track">'
            f'{grid}{"".join(marks)}</span><span class="value">{mean:.3f}</span></div>'
        )
    axis = "".join(f'<span style="left:{at(tick):.2f}%">{tick:g}</span>' for tick in places)
    body.append(
        f'<div class="row axis"><span class="name"></span><span class="track">{axis}</span>'
        '<span class="value"></span></div>'
    )
    said = "; ".join(f"{name} {mean:.3f}" for name, ((mean, _, _), _) in rows.items())
    legend = (
        '<p class="legend" aria-hidden="true"><i class="mean"></i> mean <i class="bar"></i> 95 %'
        ' interval <i class="dot"></i> one value</p>'
    )
    label = escape(f"{unit}: {said}")
    return f'<div class="chart" role="img" aria-label="{label}">{"".join(body)}</div>{legend}'


def lines(
    series: Mapping[str, Sequence[float | None]],
    labels: Sequence[str],
    title: str,
    dots: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> str:
    """One line a series over the same places; None: not measured there. `dots`: the single values
    behind a series' places."""
    values = [value for points in series.values() for value in points if value is not None]
    values += [value for places in (dots or {}).values() for place in places for value in place]
    if not values:
        return ""
    low, high = min(values), max(values)
    margin = max(0.02, (high - low) * 0.1)
    low, high = low - margin, high + margin
    left, right, top, bottom = 60, 560, 14, 220

    def at(place: int, value: float) -> tuple[float, float]:
        step = (right - left) / max(1, len(labels) - 1)
        return left + (place * step if len(labels) > 1 else (right - left) / 2), bottom - (
            value - low
        ) / (high - low) * (bottom - top)

    body = []
    for tick in ticks(low, high):
        y = at(0, tick)[1]
        body += [
            f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>',
            text(left - 8, y + 4, f"{tick:g}", "axis", "end"),
        ]
    body += [
        text(at(place, low)[0], bottom + 20, label, "axis", "middle")
        for place, label in enumerate(labels)
    ]
    ends: list[float] = []
    for number, (name, points) in enumerate(series.items()):
        places = [at(place, value) for place, value in enumerate(points) if value is not None]
        if not places:
            continue
        behind = [
            at(place, value)
            for place, single in enumerate((dots or {}).get(name, ()))
            for value in single
        ]
        body += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" class="dot c{number % 5}"/>'
            for x, y in behind
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        body.append(f'<polyline points="{path}" class="curve c{number % 5}"/>')
        body += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="c{number % 5}"/>' for x, y in places
        ]
        y = places[-1][1]
        while any(abs(y - other) < 15 for other in ends):  # names must not lie on one another
            y += 15
        ends.append(y)
        body.append(text(right + 12, y + 4, name, f"name c{number % 5}"))
    said = "; ".join(
        f"{name} from {_known(points)[0]:.3f} to {_known(points)[-1]:.3f}"
        for name, points in series.items()
        if _known(points)
    )
    return svg(770, max(250, int(max(ends, default=0)) + 20), f"{title}: {said}", body)


def _known(points: Sequence[float | None]) -> list[float]:
    return [value for value in points if value is not None]


def timeline(phases: Sequence[tuple[str, str, float, float]], notes: Mapping[str, str]) -> str:
    """Phases as bars over time: (name, side, start, seconds). `notes`: what crossed the wire in a
    phase."""
    total = max((start + seconds for _, _, start, seconds in phases), default=1.0) or 1.0
    places = ticks(0, total)
    grid = "".join(f'<i class="grid" style="left:{100 * t / total:.2f}%"></i>' for t in places)
    body = []
    for name, side, start, seconds in phases:
        where = f"left:{100 * start / total:.2f}%;width:{max(0.4, 100 * seconds / total):.2f}%"
        note = " ".join(filter(None, (f"{seconds:.1f} s", notes.get(name, ""))))
        body.append(
            f'<div class="row"><span class="name">{escape(name)}</span><span class="track">{grid}'
            f'<i class="span {escape(side)}" style="{where}"></i></span>'
            f'<span class="value">{escape(note)}</span></div>'
        )
    axis = "".join(f'<span style="left:{100 * t / total:.2f}%">{t:g} s</span>' for t in places)
    body.append(
        f'<div class="row axis"><span class="name"></span><span class="track">{axis}</span>'
        '<span class="value"></span></div>'
    )
    label = f"{len(phases)} phases in {total:.0f} seconds"
    return f'<div class="chart time" role="img" aria-label="{label}">{"".join(body)}</div>'
