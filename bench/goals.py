"""The rows of the table at the end: each figure of the bridge beside its baselines and its goal."""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.scale import Figures

FANOUT_RATIO = 20
ROUNDTRIPS_PER_S, ROUNDTRIP_P50_MS = 10_000, 2.0
PUBLISHED_PER_S = 30_000
CONNECTS_PER_S = 1_500
DELTA_P99_MS, BYTES_PER_BYTE, RESUME_P99_MS = 100, 1.6, 50
EDGE_IDLE_BYTES, ROUTER_IDLE_BYTES = 20 * 1024, 3 * 1024
P99_RISES_TO = 1.2
THROUGH_TO = 1.1


@dataclass(frozen=True, slots=True)
class Row:
    """One line. `today` is FastAPI, `bare` the bare library; None where there is no such figure."""

    what: str
    unit: str
    bridge: float
    today: float | None = None
    bare: float | None = None
    goal: str = ""
    met: bool | None = None
    less_is_better: bool = False

    @property
    def times(self) -> float | None:
        """How many times better than today's."""
        if not self.today or not self.bridge:
            return None
        return self.today / self.bridge if self.less_is_better else self.bridge / self.today


def rows(results: dict[str, Figures]) -> list[Row]:
    """The rows of those scenarios that there are results of."""
    makers = {
        "fanout": _fanout,
        "roundtrip": _roundtrip,
        "publish": _publish,
        "streams": _streams,
        "connects": _connects,
        "idle": _idle,
        "fairness": _fairness,
    }
    return [row for name, maker in makers.items() if name in results for row in maker(results[name])]


def best_point(system: Figures) -> Figures:
    """The point with the most deliveries a second."""
    best: Figures = max(system["points"], key=lambda point: point["delivered_per_s"])
    return best


def _fanout(figures: Figures) -> Iterator[Row]:
    best = {name: best_point(figures[name])["delivered_per_s"] for name in _systems(figures)}
    today, bare = best.get("fastapi"), best.get("websockets")
    for name, label in (("bridge_json", "JSON"), ("bridge_proto", "protobuf")):
        yield Row(
            f"fan-out to {figures['subscribers']:,}, {label}",
            "deliveries/s",
            best[name],
            today,
            bare,
            f"≥ {FANOUT_RATIO} × FastAPI",
            bool(today) and best[name] >= FANOUT_RATIO * (today or 0),
        )
    wrong = sum(
        sum(point["wrong"].values())
        for name in ("bridge_json", "bridge_proto")
        for point in figures[name]["points"]
    )
    yield Row(
        "fan-out, lost, refused, out of order, or subscribers closed", "", wrong, goal="0", met=wrong == 0
    )
    p50 = {name: figures[name]["points"][0]["latency"].get("p50_ms", 0.0) for name in _systems(figures)}
    yield Row(
        f"fan-out, publish → receive p50 at {figures['bridge_json']['points'][0]['rate']:,} messages/s",
        "ms",
        p50["bridge_json"],
        p50["fastapi"],
        p50["websockets"],
        less_is_better=True,
    )


def _roundtrip(figures: Figures) -> Iterator[Row]:
    most = max(figures["bridge_json"].keys() - {"tracebacks"}, key=int)
    closed = {name: figures[name][most]["closed"]["per_s"] for name in _systems(figures)}
    for name, label in (("bridge_json", "JSON"), ("bridge_proto", "protobuf")):
        yield Row(
            f"round trips, {most} clients, {label}",
            "1/s",
            closed[name],
            closed["fastapi"],
            closed["websockets"],
            f"≥ {ROUNDTRIPS_PER_S:,}",
            closed[name] >= ROUNDTRIPS_PER_S,
        )
    one = {name: figures[name]["1"]["closed"]["latency"]["p50_ms"] for name in _systems(figures)}
    yield Row(
        "round trip p50, 1 client",
        "ms",
        one["bridge_json"],
        one["fastapi"],
        one["websockets"],
        f"≤ {ROUNDTRIP_P50_MS:g} ms",
        one["bridge_json"] <= ROUNDTRIP_P50_MS,
        less_is_better=True,
    )
    wrong = sum(
        sum(phase["wrong"].values())
        for name in ("bridge_json", "bridge_proto")
        for clients in figures[name].keys() - {"tracebacks"}
        for phase in figures[name][clients].values()
    )
    yield Row("round trips unanswered, refused or out of order", "", wrong, goal="0", met=wrong == 0)


def _publish(figures: Figures) -> Iterator[Row]:
    today, bare = figures["fastapi"]["accepted_per_s"], figures["sqlite"]["accepted_per_s"]
    many = figures["many"]["accepted_per_s"]
    goal = f"≥ {PUBLISHED_PER_S:,}"
    yield Row(
        "durable publish, BroadcastMany", "messages/s", many, today, bare, goal, many >= PUBLISHED_PER_S
    )
    keyed = figures["many_with_keys"]["accepted_per_s"]
    yield Row("durable publish, with idempotency keys", "messages/s", keyed, today, bare)
    yield Row("durable publish, unary", "messages/s", figures["unary"]["accepted_per_s"], today, bare)


def _streams(figures: Figures) -> Iterator[Row]:
    """Of FastAPI: latencies of what sends the least, bytes of what is usual, the text so far each time."""
    labels = {"bridge_json": "JSON", "bridge_proto": "protobuf"}
    today = delta_p99_ms(figures["fastapi_delta"]["streams"])
    for name, label in labels.items():
        p99 = delta_p99_ms(figures[name]["rollup_0"])
        goal, met = f"≤ {DELTA_P99_MS} ms", p99 <= DELTA_P99_MS
        what = f"streamed deltas, p99 without roll-up, {label}"
        yield Row(what, "ms", p99, today, None, goal, met, less_is_better=True)
    today = figures["fastapi_whole"]["streams"]["bytes_per_byte"]
    for name, label in labels.items():
        used = figures[name]["rollup_40"]["bytes_per_byte"]
        goal, met = f"≤ {BYTES_PER_BYTE:g}", used <= BYTES_PER_BYTE
        what = f"streamed deltas, bytes per byte of text, {label}"
        yield Row(what, "", used, today, None, goal, met, less_is_better=True)
    for name, label in labels.items():
        p99 = figures[name]["resume"]["latency"]["p99_ms"]
        what = f"resume of {figures['held_bytes'] // 1024} KiB half-said, p99, {label}"
        yield Row(what, "ms", p99, None, None, f"≤ {RESUME_P99_MS} ms", p99 <= RESUME_P99_MS)
    phases = [figures[name][phase] for name in labels for phase in ("rollup_0", "rollup_40", "resume")]
    wrong = sum(sum(phase["wrong"].values()) for phase in phases)
    what = "streamed replies lost, repeated, out of order, or not ended once"
    yield Row(what, "", wrong, goal="0", met=wrong == 0)


def delta_p99_ms(phase: Figures) -> float:
    """From when a delta was due: the worse of replies to one listener and of the one to many."""
    return max(float(phase[who]["latency_from_due"]["p99_ms"]) for who in ("one", "many"))


def _connects(figures: Figures) -> Iterator[Row]:
    rate = {name: figures[name]["connects_per_s"] for name in _systems(figures)}
    yield Row(
        "connects",
        "1/s",
        rate["bridge_json"],
        rate["fastapi"],
        rate["websockets"],
        f"≥ {CONNECTS_PER_S:,}",
        rate["bridge_json"] >= CONNECTS_PER_S,
    )
    for algorithm, found in figures.get("bridge_tokens", {}).items():
        if algorithm != "tracebacks":
            yield Row(f"connects, each with a token by {algorithm}", "1/s", found["connects_per_s"])


def _idle(figures: Figures) -> Iterator[Row]:
    grown = {name: figures[name]["bytes_per_connection"] for name in _systems(figures)}
    today, bare = grown["fastapi"]["fastapi"], grown["websockets"]["websockets"]
    for process, goal in (("edge", EDGE_IDLE_BYTES), ("router", ROUTER_IDLE_BYTES)):
        used = grown["bridge_json"][process]
        yield Row(
            f"idle connection, {process}",
            "bytes",
            used,
            today if process == "edge" else None,
            bare if process == "edge" else None,
            f"≤ {goal // 1024} KiB",
            used <= goal,
            less_is_better=True,
        )


def _fairness(figures: Figures) -> Iterator[Row]:
    """Of the two delays of a phase, that to the ack and that to the listener, the worse counts."""
    labels = {"websocket": "frames", "unary": "`Broadcast`", "many": "`BroadcastMany`"}
    times, quota = figures["times"], figures["quota_per_s"]
    for way, label in labels.items():
        ratio = p99_ratio(figures[way], "tenfold")
        what = f"a tenant's p99 beside one that offers {times} times its quota in {label}, to alone"
        goal, met = f"≤ {P99_RISES_TO:g}", ratio <= P99_RISES_TO
        yield Row(what, "", ratio, goal=goal, met=met, less_is_better=True)
    for way, label in labels.items():
        through = figures[way]["tenfold"]["loud"]["through_per_s"]
        goal, met = f"≤ {THROUGH_TO * quota:,.0f}", through <= THROUGH_TO * quota
        yield Row(f"what that one gets through in {label}", "messages/s", through, goal=goal, met=met)
    phases = [phase for way in labels for phase in figures[way].values()]
    wrong = sum(sum(phase["wrong"].values()) for phase in phases)
    yield Row("errors of the first tenant", "", wrong, goal="0", met=wrong == 0)


def p99_ratio(phases: Figures, phase: str) -> float:
    """How many times the p99 alone it is in another phase; the worse of the two delays."""
    return max(
        float(phases[phase][delay]["p99_ms"] / phases["alone"][delay]["p99_ms"])
        for delay in ("acked", "heard")
    )


def _systems(figures: Figures) -> list[str]:
    return [name for name in ("bridge_json", "bridge_proto", "fastapi", "websockets") if name in figures]
