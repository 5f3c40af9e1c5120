"""Rows of the result table: each figure of Trunkline beside its baselines and its goal."""

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
FIRST_TOKEN_LATER_MS, STREAMED_SHARE = 5.0, 0.95
ATTACKED_P99_RISES_TO, ATTACKED_P99_MS = 3.0, 250
POSTGRES_PUBLISH, POSTGRES_CPU, POSTGRES_P50 = 0.7, 1.0, 1.6
TAKEN_OVER_S = {"killed": 3, "frozen": 7, "stopped": 3}
PROMOTED_S, RELINKED_S = 5, 5


@dataclass(frozen=True, slots=True)
class Row:
    """Row of the result table. `fastapi` and `bare` (bare library) are None if there is no such figure."""

    label: str
    unit: str
    bridge: float
    fastapi: float | None = None
    bare: float | None = None
    goal: str = ""
    met: bool | None = None
    less_is_better: bool = False

    @property
    def times(self) -> float | None:
        """Ratio to FastAPI; above 1 is better."""
        if not self.fastapi or not self.bridge:
            return None
        return self.fastapi / self.bridge if self.less_is_better else self.bridge / self.fastapi


def rows(results: dict[str, Figures]) -> list[Row]:
    """Return the rows of all scenarios in `results`."""
    makers = {
        "fanout": _fanout,
        "roundtrip": _roundtrip,
        "publish": _publish,
        "streams": _streams,
        "connects": _connects,
        "idle": _idle,
        "fairness": _fairness,
        "attacks": _attacks,
        "completions": _completions,
        "postgres": _postgres,
        "takeover": _takeover,
    }
    return [row for name, maker in makers.items() if name in results for row in maker(results[name])]


def best_point(system: Figures) -> Figures:
    """Return the point with the highest delivery rate."""
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
        "fan-out: messages lost, rejected or reordered, or subscribers closed",
        "",
        wrong,
        goal="0",
        met=wrong == 0,
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
    yield Row("round trips: unanswered, rejected or out of order", "", wrong, goal="0", met=wrong == 0)


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
    """Compare latencies with FastAPI sending deltas, and bytes with FastAPI sending whole texts."""
    labels = {"bridge_json": "JSON", "bridge_proto": "protobuf"}
    today = delta_p99_ms(figures["fastapi_delta"]["streams"])
    for name, label in labels.items():
        p99 = delta_p99_ms(figures[name]["rollup_0"])
        goal, met = f"≤ {DELTA_P99_MS} ms", p99 <= DELTA_P99_MS
        title = f"streamed deltas, p99 without roll-up, {label}"
        yield Row(title, "ms", p99, today, None, goal, met, less_is_better=True)
    today = figures["fastapi_whole"]["streams"]["bytes_per_byte"]
    for name, label in labels.items():
        used = figures[name]["rollup_40"]["bytes_per_byte"]
        goal, met = f"≤ {BYTES_PER_BYTE:g}", used <= BYTES_PER_BYTE
        title = f"streamed deltas, bytes per byte of text, {label}"
        yield Row(title, "", used, today, None, goal, met, less_is_better=True)
    for name, label in labels.items():
        p99 = figures[name]["resume"]["latency"]["p99_ms"]
        title = f"resume of an unfinished reply of {figures['held_bytes'] // 1024} KiB, p99, {label}"
        yield Row(title, "ms", p99, None, None, f"≤ {RESUME_P99_MS} ms", p99 <= RESUME_P99_MS)
    phases = [figures[name][phase] for name in labels for phase in ("rollup_0", "rollup_40", "resume")]
    wrong = sum(sum(phase["wrong"].values()) for phase in phases)
    title = "streamed replies: lost, repeated, out of order, or not ended once"
    yield Row(title, "", wrong, goal="0", met=wrong == 0)


def delta_p99_ms(phase: Figures) -> float:
    """Return the p99 from due time to receipt: the worse of replies to one listener and to many."""
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
            yield Row(f"connects, each with a token, {algorithm}", "1/s", found["connects_per_s"])


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
    """Judge each phase by the worse of its two delays, to the ack and to the listener."""
    labels = {"websocket": "frames", "unary": "`Broadcast`", "many": "`BroadcastMany`"}
    times, quota = figures["times"], figures["quota_per_s"]
    for way, label in labels.items():
        ratio = p99_ratio(figures[way], "tenfold")
        title = f"p99 beside a tenant that sends {times} × its quota in {label}, ratio to alone"
        goal, met = f"≤ {P99_RISES_TO:g}", ratio <= P99_RISES_TO
        yield Row(title, "", ratio, goal=goal, met=met, less_is_better=True)
    for way, label in labels.items():
        through = figures[way]["tenfold"]["loud"]["through_per_s"]
        goal, met = f"≤ {THROUGH_TO * quota:,.0f}", through <= THROUGH_TO * quota
        yield Row(f"messages accepted from that tenant in {label}", "messages/s", through, goal=goal, met=met)
    phases = [phase for way in labels for phase in figures[way].values()]
    wrong = sum(sum(phase["wrong"].values()) for phase in phases)
    yield Row("errors of the measured tenant", "", wrong, goal="0", met=wrong == 0)


def p99_ratio(phases: Figures, phase: str) -> float:
    """Return the ratio of a phase's p99 to the p99 alone; the worse of the two delays."""
    return max(
        float(phases[phase][delay]["p99_ms"] / phases["alone"][delay]["p99_ms"])
        for delay in ("acked", "heard")
    )


def _attacks(figures: Figures) -> Iterator[Row]:
    """Judge each attack by the worse of the two delays, to the ack and to the listener."""
    phases = figures["phases"]
    calm = worse_p99_ms(phases["calm"])
    for attack, phase in phases.items():
        if attack == "calm":
            continue
        p99 = worse_p99_ms(phase)
        goal = f"≤ {ATTACKED_P99_RISES_TO:g} × calm, ≤ {ATTACKED_P99_MS} ms"
        met = p99 <= min(ATTACKED_P99_RISES_TO * calm, ATTACKED_P99_MS)
        yield Row(f"p99 beside an attack: {attack}", "ms", p99, goal=goal, met=met, less_is_better=True)
    wrong = sum(sum(phase["wrong"].values()) for phase in phases.values())
    yield Row("errors of the tenant beside the attacks", "", wrong, goal="0", met=wrong == 0)


def _completions(figures: Figures) -> Iterator[Row]:
    """Compare calls with the native socket, and a bot that fails with the same bot that answers."""
    calls, bot = figures["calls"], figures["bot"]
    later = calls["turns"]["call"]["p50_ms"] - calls["turns"]["native"]["p50_ms"]
    goal, met = f"≤ {FIRST_TOKEN_LATER_MS:g} ms", later <= FIRST_TOKEN_LATER_MS
    yield Row("chat completions: first token after the native socket's, p50", "ms", later, goal=goal, met=met)
    streamed = calls["streamed"]
    offered, delivered = streamed["offered_per_s"], streamed["delivered_per_s"]
    title = f"chat completions: {calls['streams']:,} streams at {calls['deltas_per_s']} deltas/s"
    goal, met = f"≥ {STREAMED_SHARE:.0%} of {offered:,.0f}", delivered >= STREAMED_SHARE * offered
    yield Row(title, "deltas/s", delivered, goal=goal, met=met)
    wrong = sum(streamed["wrong"].values())
    yield Row("chat completions: lost, refused, wrong or not ended", "", wrong, goal="0", met=wrong == 0)
    p99 = {phase: worse_p99_ms(found) for phase, found in bot["phases"].items()}
    goal, met = f"≤ {P99_RISES_TO:g} × answering", p99["failing"] <= P99_RISES_TO * p99["answering"]
    title = "p99 of other conversations beside a bot that fails"
    yield Row(title, "ms", p99["failing"], goal=goal, met=met, less_is_better=True)
    wrong = sum(sum(phase["wrong"].values()) for phase in bot["phases"].values())
    yield Row("errors of other conversations beside the bot", "", wrong, goal="0", met=wrong == 0)


def _postgres(figures: Figures) -> Iterator[Row]:
    """Compare PostgreSQL with SQLite, each with a router of its own."""
    sqlite, postgres = figures["sqlite"], figures["postgres"]
    labels = {"many": "BroadcastMany", "many_with_keys": "with idempotency keys", "unary": "unary"}
    for phase, label in labels.items():
        ratio = postgres[phase]["per_s"] / sqlite[phase]["per_s"]
        goal, met = f"≥ {POSTGRES_PUBLISH:g}", ratio >= POSTGRES_PUBLISH
        yield Row(f"durable publish in PostgreSQL, {label}, ratio to SQLite", "", ratio, goal=goal, met=met)
    for phase, label in labels.items():
        ratio = postgres[phase]["router_us"] / sqlite[phase]["router_us"]
        goal, met = f"≤ {POSTGRES_CPU:g}", ratio <= POSTGRES_CPU
        title = f"CPU of the router a message in PostgreSQL, {label}, ratio to SQLite"
        yield Row(title, "", ratio, goal=goal, met=met, less_is_better=True)
    ratio = postgres["clients_1"]["latency"]["p50_ms"] / sqlite["clients_1"]["latency"]["p50_ms"]
    goal, met = f"≤ {POSTGRES_P50:g}", ratio <= POSTGRES_P50
    title = "round trip p50 in PostgreSQL, 1 client, ratio to SQLite"
    yield Row(title, "", ratio, goal=goal, met=met, less_is_better=True)


def _takeover(figures: Figures) -> Iterator[Row]:
    """Judge each way by its worst repeat."""
    clients = f"{figures['clients']:,} clients"
    for how, limit_s in TAKEN_OVER_S.items():
        p99 = figures["ways"][how]["latency"]["p99_ms"] / 1000
        title = f"owner {how} → first ack on the same socket, p99 of {clients}"
        yield Row(title, "s", p99, goal=f"≤ {limit_s} s", met=p99 <= limit_s, less_is_better=True)
    p99 = figures["promoted"]["latency"]["p99_ms"] / 1000
    title = f"synchronous standby promoted → first ack, p99 of {clients}"
    yield Row(title, "s", p99, goal=f"≤ {PROMOTED_S} s", met=p99 <= PROMOTED_S, less_is_better=True)
    last = figures["relinked"]["latency"]["max_ms"] / 1000
    title = f"owner stopped → last of {figures['relinked_clients']:,} acks"
    yield Row(title, "s", last, goal=f"≤ {RELINKED_S} s", met=last <= RELINKED_S, less_is_better=True)
    wrong = figures["unacked"] + abs(figures["stored_less_sent"])
    yield Row("take-overs: messages unacked, lost or doubled", "", wrong, goal="0", met=wrong == 0)


def worse_p99_ms(phase: Figures) -> float:
    """Return the p99 of a phase: the worse of the delays to the ack and to the listener."""
    return max(float(phase[delay]["p99_ms"]) for delay in ("acked", "heard"))


def _systems(figures: Figures) -> list[str]:
    return [name for name in ("bridge_json", "bridge_proto", "fastapi", "websockets") if name in figures]
