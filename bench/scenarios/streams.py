"""Streamed replies: many side by side and one to a group, and coming back to one that is half said."""

from bench.aggregate import medians, totals
from bench.loadgen.reply_text import DELTAS_PER_S
from bench.processes import Child, Testbed, testbed
from bench.resource_usage import measure_cpu
from bench.scale import Figures, Scale, Step
from bench.systems import BRIDGES, GROUP, STREAMING_BASELINES, System, start

ROLLUPS_MS = (0, 40)
HELD_BYTES = 100 * 1024
HOLDER = "held"


def steps(scale: Scale) -> int:
    """How often `run` calls its `step`."""
    return scale.repeats * (len(BRIDGES) * (len(ROLLUPS_MS) + 1) + len(STREAMING_BASELINES))


def run(scale: Scale, step: Step) -> Figures:
    """The bridge with and without roll-up, in both encodings, and what is usual today."""
    return {
        "replies": scale.streams,
        "listeners": scale.subscribers,
        "deltas_per_s": DELTAS_PER_S,
        "held_bytes": HELD_BYTES,
        **{system.name: _bridge(system, scale, step) for system in BRIDGES},
        **{system.name: _today(system, scale, step) for system in STREAMING_BASELINES},
    }


def _bridge(system: System, scale: Scale, step: Step) -> Figures:
    with testbed() as on:
        running = start(on, system)
        followers = on.generator("followers", running.port)
        producer = on.generator("producer", running.router_port)
        found: Figures = {}
        for rollup_ms in ROLLUPS_MS:
            repeats = []
            for _ in range(scale.repeats):
                step(f"{system.label}, roll-up {rollup_ms} ms")
                repeats.append(_phase(on, system, followers, producer, scale, f"&rollup_ms={rollup_ms}"))
            found[f"rollup_{rollup_ms}"] = _together(repeats)
        resumers = on.generator("resumers", running.port)
        repeats = []
        for _ in range(scale.repeats):
            step(f"{system.label}, resume")
            repeats.append(_resume(on, system, resumers, producer, scale))
        found["resume"] = {**medians(repeats), "wrong": totals([repeat["wrong"] for repeat in repeats])}
        return {**found, "tracebacks": on.tracebacks()}


def _today(system: System, scale: Scale, step: Step) -> Figures:
    with testbed() as on:
        server, port = on.server("fastapi", "-m", "bench.baselines.streaming_app")
        followers = on.generator("followers", port)
        repeats = []
        for _ in range(scale.repeats):
            step(system.label)
            repeats.append(_phase(on, system, followers, server, scale))
        return {"streams": _together(repeats), "tracebacks": on.tracebacks()}


def _phase(
    on: Testbed, system: System, followers: Child, producer: Child, scale: Scale, query: str = ""
) -> Figures:
    """All listeners connect, all replies are streamed and ended, and what came is checked."""
    encoding = system.subprotocol or system.name.partition("_")[2]
    doors = [(system.person(), scale.streams, None), (system.room(), scale.subscribers, scale.streams)]
    for door, count, reply in doors:
        door["target"] += query
        opened = followers.ask("open", "opened", 60, door=door, encoding=encoding, count=count, reply=reply)
        if opened["opened"] != count:
            raise RuntimeError(f"{system.label}: {opened}")
    whole = {} if system.subprotocol else {"whole": encoding == "whole"}
    with measure_cpu(on.children) as cpu:
        said = producer.ask(
            "stream", "handed", 120, persons=scale.streams, group=GROUP, seconds=scale.stream_s, **whole
        )
    heard = followers.ask("finish", "one", 180, start_ns=said["start_ns"], digests=said["digests"])
    return _figures(said, heard, cpu)


def _figures(said: Figures, heard: Figures, cpu: dict[str, float]) -> Figures:
    both = [heard["one"], heard["many"]]
    text_bytes = max(1, sum(part["text_bytes"] for part in both))
    deltas = sum(part["bytes"].get("delta", 0) for part in both)
    everything = sum(sum(part["bytes"].values()) for part in both)
    frames = sum(part["frames"].get("delta", 0) for part in both)
    heard_s = (heard["last_ns"] - said["start_ns"]) / 1e9
    return {
        "offered_per_s": said["offered"] / said["elapsed_s"],
        "handed_per_s": said["handed"] / said["elapsed_s"],
        "handed_share": said["handed"] / said["offered"],
        "deltas_delivered_per_s": sum(part["deltas"] for part in both) / heard_s,
        "frames_per_s": frames / heard_s,
        "bytes_per_byte": deltas / text_bytes,
        "bytes_per_byte_with_ends": everything / text_bytes,
        "one": {name: heard["one"][name] for name in ("latency", "latency_from_due")},
        "many": {name: heard["many"][name] for name in ("latency", "latency_from_due")},
        "late": said["late"],
        "cpu_percent": cpu,
        "wrong": {
            "refused": sum(said["refused"].values()),
            "replies_not_ended_once": said["not_ended_once"],
            "listeners_gone": sum(heard["gone"].values()),
            "faults": sum(sum(part["faults"].values()) for part in both),
            **{name: sum(part["wrong"][name] for part in both) for name in both[0]["wrong"]},
        },
        "faults": totals([said["refused"], heard["gone"], *(part["faults"] for part in both)]),
    }


def _together(repeats: list[Figures]) -> Figures:
    sums = {name: totals([repeat[name] for repeat in repeats]) for name in ("wrong", "faults")}
    return {**medians(repeats), **sums}


def _resume(on: Testbed, system: System, resumers: Child, producer: Child, scale: Scale) -> Figures:
    held = producer.ask("hold", "held", 30, person=HOLDER, size=HELD_BYTES)
    target = system.person()["target"].replace("{n}", HOLDER)
    arguments = {"target": target, "subprotocol": system.subprotocol, "times": scale.resumes}
    with measure_cpu(on.children) as cpu:
        done = resumers.ask("resume", "resumed", 120, expected=held["digest"], **arguments)
    released = producer.ask("release", "released", 30)
    refused = sum(held["refused"].values()) + sum(released["refused"].values())
    return {
        "latency": done["latency"],
        "frame_bytes": done["frame_bytes"],
        "cpu_percent": cpu,
        "wrong": {**done["wrong"], **({"refused": refused} if refused else {})},
    }
