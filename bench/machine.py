"""Description of the machine that runs the benchmarks, without host names or paths."""

import datetime
import importlib.metadata
import os
import platform
import sqlite3
import tempfile
import time
from pathlib import Path

import psutil

LIBRARIES = ("websockets", "grpcio", "protobuf", "msgspec", "uvloop", "uvicorn", "fastapi", "starlette")


def machine() -> dict[str, object]:
    """Describe CPU, memory, system, Python, libraries and fsync time."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "fsync_us": round(_fsync_us()),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _fsync_us(rounds: int = 100) -> float:
    """Measure the mean time to append and sync 4 KiB in the directory of the benchmark logs."""
    with tempfile.TemporaryFile() as file:
        began = time.perf_counter()
        for _ in range(rounds):
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        return (time.perf_counter() - began) / rounds * 1e6
