"""Fan-out: one publisher and many subscribers of one group; offered rate against delivered rate."""

from bench.aggregate import medians, totals
from bench.processes import Child, Testbed, testbed
from bench.resource_usage import measure_cpu, peak_rss_mib
from bench.scale import Figures, Scale, Step
from bench.systems import GROUP, SYSTEMS, Running, System, start

DRAINED_WITHIN_S = 60.0
FLAT_OUT_PAUSE_S = 0.002


def steps(scale: Scale) -> int:
    """Return the number of times that `run` calls `step`."""
    return scale.repeats * 2 * (len(scale.bridge_rates) + len(scale.baseline_rates))


def run(scale: Scale, step: Step) -> Figures:
    """Measure all systems at all rates."""
    return {
        "subscribers": scale.subscribers,
        **{system.name: _system(system, scale, step) for system in SYSTEMS},
    }


def _system(system: System, scale: Scale, step: Step) -> Figures:
    rates = scale.bridge_rates if system.subprotocol else scale.baseline_rates
    with testbed() as bed:
        running = start(bed, system)
        listeners = bed.generator("listeners", running.port)
        publisher = _publisher(bed, running)
        _subscribe(listeners, system, scale)
        points = []
        for rate in rates:
            repeats = []
            for _ in range(scale.repeats):
                step(f"{system.label}, {f'{rate:,}/s' if rate else 'flat out'}")
                repeats.append(_phase(bed, listeners, publisher, rate, scale))
                if any(repeats[-1]["wrong"].values()):
                    listeners.call("close", "closed", 30)
                    _subscribe(listeners, system, scale)
            points.append(_point(rate, repeats))
        peaks = peak_rss_mib(running.servers)
        return {"points": points, "peak_rss_mib": peaks, "tracebacks": bed.tracebacks()}


def _subscribe(listeners: Child, system: System, scale: Scale) -> None:
    endpoint, count = system.room(), scale.subscribers
    opened = listeners.call("open", "opened", 60, endpoint=endpoint, count=count, at_a_time=100)
    if opened["opened"] != count:
        raise RuntimeError(f"{system.label}: {opened}")


def _publisher(bed: Testbed, running: Running) -> Child:
    """Return the process that publishes: a load generator for Trunkline, the server itself for a baseline."""
    return bed.generator("publisher", running.router_port) if running.router_port else running.servers[0]


def _phase(bed: Testbed, listeners: Child, publisher: Child, rate: float | None, scale: Scale) -> Figures:
    group = {"group": GROUP} if publisher.name == "publisher" else {}
    with measure_cpu(bed.children) as cpu:
        listeners.call("begin", "listeners", 10, pause_s=0 if rate else FLAT_OUT_PAUSE_S)
        sent = publisher.call("publish", "accepted", 120, rate=rate, seconds=scale.phase_s, **group)
        got = listeners.call(
            "finish", "messages", 120, messages=sent["accepted"], drained_within_s=DRAINED_WITHIN_S
        )
    elapsed_s = (got["last_ns"] - sent["start_ns"]) / 1e9
    deliveries = got["received_bytes"] / max(1, got["stream_bytes"]) * got["messages"]
    return {
        "offered_per_s": sent["offered"] / scale.phase_s,
        "accepted_per_s": sent["accepted"] / scale.phase_s,
        "delivered_per_s": deliveries / elapsed_s,
        "deliveries": deliveries,
        "frame_bytes": got["stream_bytes"] / max(1, got["messages"]),
        "elapsed_s": elapsed_s,
        "latency": got["latency"],
        "cpu_percent": cpu,
        "wrong": _wrong(sent, got, scale.subscribers),
        "faults": got["faults"],
    }


def _wrong(sent: Figures, got: Figures, subscribers: int) -> dict[str, int]:
    """Count errors. If all subscribers were closed, lost messages cannot be observed and count as 0."""
    return {
        "refused": sum(sent["refused"].values()),
        "messages_lost": sent["accepted"] - got["messages"] if got["listeners"] else 0,
        "subscribers_closed": subscribers - got["listeners"],
        "subscribers_behind": got["listeners"] - got["listeners_with_all"],
        **{name: got.get(name, 0) for name in ("unmarked", "number_breaks", "seq_breaks")},
    }


def _point(rate: float | None, repeats: list[Figures]) -> Figures:
    point = {"rate": rate, **medians(repeats), "wrong": totals([repeat["wrong"] for repeat in repeats])}
    point["faults"] = totals([repeat["faults"] for repeat in repeats])
    point["saturated"] = rate is None or point["accepted_per_s"] < 0.97 * rate
    return point
