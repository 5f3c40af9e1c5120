"""CPU and memory usage of child processes."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from bench.processes import Child


def _cpu_s(child: Child) -> float:
    times = child.meter.cpu_times()
    return float(times.user + times.system)


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


@contextmanager
def measure_cpu(children: Sequence[Child]) -> Iterator[dict[str, float]]:
    """Yield a dict that is filled on exit: percent of one core, by process name.

    `others` is the rest of the machine's CPU time, including time stolen by the hypervisor.
    """
    used: dict[str, float] = {}
    before, busy, began = [_cpu_s(child) for child in children], _busy_s(), time.monotonic()
    yield used
    elapsed = time.monotonic() - began
    for child, at_start in zip(children, before, strict=True):
        used[child.name] = round(100 * (_cpu_s(child) - at_start) / elapsed, 1)
    used["others"] = round(max(0.0, 100 * (_busy_s() - busy) / elapsed - sum(used.values())), 1)


def peak_rss_mib(children: Sequence[Child]) -> dict[str, float]:
    """Return the peak resident memory of each process so far, by name."""
    peaks = {}
    for child in children:
        status = Path(f"/proc/{child.meter.pid}/status").read_text()
        peaks[child.name] = round(int(status.partition("VmHWM:")[2].split()[0]) / 1024, 1)
    return peaks


def settled_rss(child: Child, within_s: float = 6.0) -> int:
    """Return resident bytes once two samples 0.5 s apart differ by under 64 KiB, or after `within_s`."""
    deadline, last = time.monotonic() + within_s, -1
    while True:
        rss = int(child.meter.memory_info().rss)
        if abs(rss - last) < 65536 or time.monotonic() > deadline:
            return rss
        last = rss
        time.sleep(0.5)
