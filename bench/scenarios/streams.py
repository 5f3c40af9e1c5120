"""Streamed replies: many in parallel and one to a group; resume of an unfinished one."""

from bench.aggregate import medians, totals
from bench.loadgen.reply_text import DELTAS_PER_S
from bench.processes import Child, Testbed, testbed
from bench.resource_usage import measure_cpu
from bench.scale import Figures, Scale, Step
from bench.systems import BRIDGES, GROUP, STREAMING_BASELINES, System, start

ROLLUPS_MS = (0, 40)
UNFINISHED_BYTES = 100 * 1024
UNFINISHED_PERSON = "unfinished"


def steps(scale: Scale) -> int:
    """Return the number of times that `run` calls `step`."""
    return scale.repeats * (len(BRIDGES) * (len(ROLLUPS_MS) + 1) + len(STREAMING_BASELINES))


def run(scale: Scale, step: Step) -> Figures:
    """Measure Trunkline with and without roll-up, in both encodings, and the baselines."""
    return {
        "replies": scale.streams,
        "listeners": scale.subscribers,
        "deltas_per_s": DELTAS_PER_S,
        "held_bytes": UNFINISHED_BYTES,
        **{system.name: _bridge(system, scale, step) for system in BRIDGES},
        **{system.name: _baseline(system, scale, step) for system in STREAMING_BASELINES},
    }


def _bridge(system: System, scale: Scale, step: Step) -> Figures:
    with testbed() as bed:
        running = start(bed, system)
        followers = bed.generator("followers", running.port)
        producer = bed.generator("producer", running.router_port)
        found: Figures = {}
        for rollup_ms in ROLLUPS_MS:
            repeats = []
            for _ in range(scale.repeats):
                step(f"{system.label}, roll-up {rollup_ms} ms")
                repeats.append(_phase(bed, system, followers, producer, scale, f"&rollup_ms={rollup_ms}"))
            found[f"rollup_{rollup_ms}"] = _together(repeats)
        resumers = bed.generator("resumers", running.port)
        repeats = []
        for _ in range(scale.repeats):
            step(f"{system.label}, resume")
            repeats.append(_resume(bed, system, resumers, producer, scale))
        found["resume"] = {**medians(repeats), "wrong": totals([repeat["wrong"] for repeat in repeats])}
        return {**found, "tracebacks": bed.tracebacks()}


def _baseline(system: System, scale: Scale, step: Step) -> Figures:
    with testbed() as bed:
        server, port = bed.server("fastapi", "-m", "bench.baselines.streaming_app")
        followers = bed.generator("followers", port)
        repeats = []
        for _ in range(scale.repeats):
            step(system.label)
            repeats.append(_phase(bed, system, followers, server, scale))
        return {"streams": _together(repeats), "tracebacks": bed.tracebacks()}


def _phase(
    bed: Testbed, system: System, followers: Child, producer: Child, scale: Scale, query: str = ""
) -> Figures:
    """Connect all listeners, stream all replies to their end, and check the received texts."""
    encoding = system.subprotocol or system.name.partition("_")[2]
    endpoints = [(system.person(), scale.streams, None), (system.room(), scale.subscribers, scale.streams)]
    for endpoint, count, reply in endpoints:
        endpoint["target"] += query
        opened = followers.call(
            "open", "opened", 60, endpoint=endpoint, encoding=encoding, count=count, reply=reply
        )
        if opened["opened"] != count:
            raise RuntimeError(f"{system.label}: {opened}")
    whole = {} if system.subprotocol else {"whole": encoding == "whole"}
    with measure_cpu(bed.children) as cpu:
        sent = producer.call(
            "stream", "handed", 120, persons=scale.streams, group=GROUP, seconds=scale.stream_s, **whole
        )
    received = followers.call("finish", "one", 180, start_ns=sent["start_ns"], digests=sent["digests"])
    return _figures(sent, received, cpu)


def _figures(sent: Figures, received: Figures, cpu: dict[str, float]) -> Figures:
    both = [received["one"], received["many"]]
    text_bytes = max(1, sum(part["text_bytes"] for part in both))
    deltas = sum(part["bytes"].get("delta", 0) for part in both)
    everything = sum(sum(part["bytes"].values()) for part in both)
    frames = sum(part["frames"].get("delta", 0) for part in both)
    received_s = (received["last_ns"] - sent["start_ns"]) / 1e9
    return {
        "offered_per_s": sent["offered"] / sent["elapsed_s"],
        "handed_per_s": sent["handed"] / sent["elapsed_s"],
        "handed_share": sent["handed"] / sent["offered"],
        "deltas_delivered_per_s": sum(part["deltas"] for part in both) / received_s,
        "frames_per_s": frames / received_s,
        "bytes_per_byte": deltas / text_bytes,
        "bytes_per_byte_with_ends": everything / text_bytes,
        "one": {name: received["one"][name] for name in ("latency", "latency_from_due")},
        "many": {name: received["many"][name] for name in ("latency", "latency_from_due")},
        "late": sent["late"],
        "cpu_percent": cpu,
        "wrong": {
            "refused": sum(sent["refused"].values()),
            "replies_not_ended_once": sent["not_ended_once"],
            "listeners_gone": sum(received["gone"].values()),
            "faults": sum(sum(part["faults"].values()) for part in both),
            **{name: sum(part["wrong"][name] for part in both) for name in both[0]["wrong"]},
        },
        "faults": totals([sent["refused"], received["gone"], *(part["faults"] for part in both)]),
    }


def _together(repeats: list[Figures]) -> Figures:
    sums = {name: totals([repeat[name] for repeat in repeats]) for name in ("wrong", "faults")}
    return {**medians(repeats), **sums}


def _resume(bed: Testbed, system: System, resumers: Child, producer: Child, scale: Scale) -> Figures:
    unfinished = producer.call("begin_reply", "written", 30, person=UNFINISHED_PERSON, size=UNFINISHED_BYTES)
    target = system.person()["target"].replace("{n}", UNFINISHED_PERSON)
    arguments = {"target": target, "subprotocol": system.subprotocol, "times": scale.resumes}
    with measure_cpu(bed.children) as cpu:
        done = resumers.call("resume", "resumed", 120, expected=unfinished["digest"], **arguments)
    finished = producer.call("finish_reply", "finished", 30)
    refused = sum(unfinished["refused"].values()) + sum(finished["refused"].values())
    return {
        "latency": done["latency"],
        "frame_bytes": done["frame_bytes"],
        "cpu_percent": cpu,
        "wrong": {**done["wrong"], **({"refused": refused} if refused else {})},
    }
