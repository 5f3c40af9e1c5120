"""SVG chart of fairness: a tenant's p99 alone, and while another tenant sends."""

from bench.chart import text
from bench.goals import P99_RISES_TO
from bench.scale import Figures

WIDTH, HEIGHT = 960, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 900, 76, 240
BAR_WIDTH = 64
WAYS = {"websocket": "frames", "unary": "Broadcast", "many": "BroadcastMany"}
PHASES = {
    "alone": ("the other is silent", "#868e96"),
    "at_quota": ("it sends its quota", "#5f3dc4"),
    "tenfold": ("it sends {times} times its quota", "#0b7285"),
}


def fairness_chart(figures: Figures) -> str:
    """Return the chart as an SVG document: the worse p99 of ack and delivery, by method and phase."""
    style = 'font-family="system-ui, sans-serif" font-size="12" fill="#212529"'
    found = {way: {phase: _p99_ms(figures[way][phase]) for phase in PHASES} for way in WAYS}
    most = 1.25 * max(p99 for phases in found.values() for p99 in phases.values())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {style}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
        text(LEFT, 28, "Effect of one tenant on another: p99 of its messages, ms", extra=' font-size="15"'),
    ]
    for at, (label, colour) in enumerate(PHASES.values()):
        left = LEFT + 210 * at
        parts.append(f'<rect x="{left}" y="42" width="12" height="12" fill="{colour}"/>')
        parts.append(text(left + 18, 53, label.format(times=figures["times"])))
    for at, way in enumerate(WAYS):
        parts += _group(LEFT + at * (RIGHT - LEFT) / len(WAYS), way, found[way], most)
    parts.append(f'<path d="M{LEFT} {BOTTOM}H{RIGHT}" stroke="#868e96"/>')
    parts.append(text(RIGHT, HEIGHT - 14, f"dashes: {P99_RISES_TO:g} × the p99 alone", "end"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _p99_ms(phase: Figures) -> float:
    return max(float(phase[delay]["p99_ms"]) for delay in ("acked", "heard"))


def _group(left: float, way: str, p99_ms: dict[str, float], most: float) -> list[str]:
    parts = []
    for at, (phase, (_, colour)) in enumerate(PHASES.items()):
        x, height = left + at * (BAR_WIDTH + 8), (BOTTOM - TOP) * p99_ms[phase] / most
        top = BOTTOM - height
        parts.append(
            f'<rect x="{x:.1f}" y="{top:.1f}" width="{BAR_WIDTH}" height="{height:.1f}" fill="{colour}"/>'
        )
        parts.append(text(x + BAR_WIDTH / 2, top - 6, f"{p99_ms[phase]:.1f}", "middle"))
    wide = len(PHASES) * (BAR_WIDTH + 8) - 8
    goal = BOTTOM - (BOTTOM - TOP) * P99_RISES_TO * p99_ms["alone"] / most
    parts.append(
        f'<path d="M{left:.1f} {goal:.1f}h{wide}" stroke="#e8590c" stroke-dasharray="4 4" fill="none"/>'
    )
    parts.append(text(left + wide / 2, BOTTOM + 20, f"by {WAYS[way]}", "middle"))
    return parts
