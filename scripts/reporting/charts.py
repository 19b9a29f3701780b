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
    """One line a row: its mean with a 95 % interval, and a dot for each single value behind it.
    Values in [0, 1]."""
    every = [
        value
        for (mean, low, high), dots in rows.values()
        for value in (mean, low, high, *dots)
        if math.isfinite(value)
    ]
    low, high = max(0.0, min(every) - 0.02), min(1.0, max(every) + 0.02)
    # narrow, and a name above its line, so that a phone shows it whole
    left, right, top, line = 12, 450, 4, 40
    height = top + line * len(rows) + 30

    def x(value: float) -> float:
        return left + (min(max(value, low), high) - low) / max(high - low, 1e-9) * (right - left)

    body = []
    for tick in ticks(low, high):
        body.append(
            f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{height - 26}"'
            ' class="grid"/>'
        )
        body.append(text(x(tick), height - 10, f"{tick:g}", "axis", "middle"))
    for number, (name, ((mean, least, most), dots)) in enumerate(rows.items()):
        y, kind = top + line * number + 28, "main" if name == highlight else "other"
        body.append(text(left - 8, y - 13, name, f"name {kind}"))
        body += [f'<circle cx="{x(dot):.1f}" cy="{y}" r="3" class="dot {kind}"/>' for dot in dots]
        if math.isfinite(least):
            body.append(
                f'<line x1="{x(least):.1f}" x2="{x(most):.1f}" y1="{y}" y2="{y}" class="bar'
                f' {kind}"/>'
            )
        body.append(
            f'<rect x="{x(mean) - 3:.1f}" y="{y - 8}" width="6" height="16" rx="2" class="mean'
            f' {kind}"/>'
        )
        body.append(text(right + 10, y + 4, f"{mean:.3f}", f"value {kind}"))
    said = "; ".join(f"{name} {mean:.3f}" for name, ((mean, _, _), _) in rows.items())
    return svg(510, height, f"{unit}: {said}", body)


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
    left, right, line = 190, 560, 18
    height = line * len(phases) + 34

    def x(seconds: float) -> float:
        return left + seconds / total * (right - left)

    body = []
    for tick in ticks(0, total):
        body.append(
            f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="0" y2="{height - 26}" class="grid"/>'
        )
        body.append(text(x(tick), height - 10, f"{tick:g} s", "axis", "middle"))
    for number, (name, side, start, seconds) in enumerate(phases):
        y = line * number
        body.append(text(left - 8, y + 12, name, "small", "end"))
        body.append(
            f'<rect x="{x(start):.1f}" y="{y + 3}" width="{max(1.5, x(seconds) - left):.1f}"'
            f' height="11" rx="2" class="{side}"/>'
        )
        body.append(
            text(
                x(start + seconds) + 6,
                y + 12,
                " ".join(filter(None, (f"{seconds:.1f} s", notes.get(name, "")))),
                "small",
            )
        )
    return svg(770, height, f"{len(phases)} phases in {total:.0f} seconds", body)
