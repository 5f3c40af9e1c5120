"""SVG chart of the results: fan-out rate offered against delivered, and ratios to FastAPI."""

import math
from collections.abc import Sequence

from bench.goals import Row
from bench.scale import Figures

WIDTH, HEIGHT = 960, 400
LEFT, RIGHT, TOP, BOTTOM = 76, 440, 56, 340
"""Bounds of the fan-out panel; the bar panel is to its right."""
BARS_LEFT, BARS_RIGHT, BAR_HEIGHT = 710, 905, 18
SERIES = {
    "bridge_json": ("Trunkline, JSON", "#0b7285"),
    "bridge_proto": ("Trunkline, protobuf", "#5f3dc4"),
    "fastapi": ("FastAPI manager", "#e8590c"),
    "websockets": ("bare websockets", "#868e96"),
}


def chart(fanout: Figures, rows: Sequence[Row]) -> str:
    """Return the chart as a self-contained SVG document."""
    style = 'font-family="system-ui, sans-serif" font-size="12" fill="#212529"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {style}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
        *_fanout_panel(fanout),
        *_ratio_panel([row for row in rows if row.times]),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def text(x: float, y: float, content: str, anchor: str = "start", extra: str = "") -> str:
    """Return a text element; `anchor` says which end of the text is at `x`."""
    safe = content.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{safe}</text>'


def _short(value: float) -> str:
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


class _LogScale:
    """Maps values to pixels on a logarithmic axis that starts and ends at a power of ten."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self.first = math.floor(math.log10(min(values)))
        self.last = max(self.first + 1, math.ceil(math.log10(max(values))))
        self._start, self._end = start, end

    def at(self, value: float) -> float:
        share = (math.log10(value) - self.first) / (self.last - self.first)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        return [10.0**power for power in range(self.first, self.last + 1)]


def _fanout_panel(fanout: Figures) -> list[str]:
    subscribers = fanout["subscribers"]
    points = {name: [point for point in fanout[name]["points"] if point["rate"]] for name in SERIES}
    flat = [point for series in points.values() for point in series]
    x = _LogScale([point["rate"] for point in flat], LEFT, RIGHT)
    y = _LogScale(
        [point["delivered_per_s"] for point in flat] + [point["rate"] * subscribers for point in flat],
        BOTTOM,
        TOP,
    )
    parts = [text(LEFT, 28, f"Fan-out to {subscribers:,} subscribers", extra=' font-size="15"')]
    parts += [text(x.at(tick), BOTTOM + 18, _short(tick), "middle") for tick in x.ticks()]
    parts += [text(LEFT - 8, y.at(tick) + 4, _short(tick), "end") for tick in y.ticks()]
    parts += [f'<path d="M{LEFT} {y.at(tick):.1f}H{RIGHT}" stroke="#dee2e6"/>' for tick in y.ticks()]
    parts.append(text((LEFT + RIGHT) / 2, BOTTOM + 40, "messages/s offered", "middle"))
    parts.append(text(LEFT, TOP - 10, "deliveries/s"))
    ends = (min(point["rate"] for point in flat), max(point["rate"] for point in flat))
    ideal = " L".join(f"{x.at(rate):.1f} {y.at(rate * subscribers):.1f}" for rate in ends)
    parts.append(f'<path d="M{ideal}" stroke="#adb5bd" stroke-dasharray="4 4" fill="none"/>')
    for at, (name, (label, colour)) in enumerate(SERIES.items()):
        parts += _series(points[name], x, y, colour)
        top = TOP + 14 + 18 * at
        parts.append(f'<circle cx="{LEFT + 16}" cy="{top - 4}" r="4" fill="{colour}"/>')
        parts.append(text(LEFT + 26, top, label))
    return parts


def _series(points: Sequence[Figures], x: _LogScale, y: _LogScale, colour: str) -> list[str]:
    places = [(x.at(point["rate"]), y.at(point["delivered_per_s"])) for point in points]
    line = " L".join(f"{left:.1f} {top:.1f}" for left, top in places)
    dots = [f'<circle cx="{left:.1f}" cy="{top:.1f}" r="4" fill="{colour}"/>' for left, top in places]
    return [f'<path d="M{line}" stroke="{colour}" stroke-width="2" fill="none"/>', *dots]


def _ratio_panel(rows: Sequence[Row]) -> list[str]:
    parts = [
        text(500, 28, "Ratio to FastAPI", extra=' font-size="15"'),
        text(
            WIDTH - 20,
            BOTTOM + 40,
            "In round trips FastAPI stores nothing; Trunkline commits both messages",
            "end",
        ),
    ]
    times = [row.times or 1.0 for row in rows]
    scale = _LogScale([*times, 0.1, 10.0], BARS_LEFT, BARS_RIGHT)
    one = scale.at(1.0)
    step = min(32.0, (BOTTOM - TOP) / max(1, len(rows)))
    for at, (row, ratio) in enumerate(zip(rows, times, strict=True)):
        top = TOP + at * step
        left, right = sorted((one, scale.at(ratio)))
        colour = "#0b7285" if ratio >= 1 else "#e8590c"
        parts.append(text(BARS_LEFT - 8, top + 13, row.label, "end", ' font-size="10"'))
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(1.0, right - left):.1f}" '
            f'height="{BAR_HEIGHT}" fill="{colour}"/>'
        )
        label = f"{ratio:.0f} ×" if ratio >= 10 else f"{ratio:.2g} ×"
        parts.append(text(right + 4, top + 13, label))
    parts.append(f'<path d="M{one:.1f} {TOP - 6}V{BOTTOM}" stroke="#868e96"/>')
    return parts
