"""Starts and stops the real processes that a benchmark consists of."""

import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
TENANT = "demo"

UNLIMITED = """
connections = 1_000_000
connections_per_user = 1_000_000
connects_per_s = 1_000_000_000
messages_per_s = 1_000_000_000
bytes_per_s = 1_000_000_000_000
connection_messages_per_s = 1_000_000_000
connection_bytes_per_s = 1_000_000_000_000
open_messages = 1_000_000
calls_per_s = 1_000_000_000
"""
"""Limits that nobody comes near, but which are looked at as any others are."""


def tenant_toml(tenant: str, limits: str = UNLIMITED, more: str = "") -> str:
    """A tenant of a tenants file, which needs no proof on this machine; `more` are further tables of it."""
    return f'[tenants.{tenant}]\nopen_to = "loopback"\n{more}\n[tenants.{tenant}.limits]\n{limits}\n'


class ChildError(Exception):
    """A process ended, or said nothing in time; the text has the end of what it wrote to stderr."""


class Child:
    """One process, spoken with in JSON lines (see `bench.commands`)."""

    def __init__(self, name: str, *argv: str, env: dict[str, str] | None = None) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop()
        self._process = subprocess.Popen(
            [sys.executable, *argv],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._stdout, selectors.EVENT_READ)
        self._heard = b""
        self.meter = psutil.Process(self._process.pid)

    def hear(self, key: str, within_s: float) -> dict[str, Any]:
        """The next JSON line that has `key`; raises ChildError where none comes in time."""
        deadline = time.monotonic() + within_s
        while True:
            line, newline, rest = self._heard.partition(b"\n")
            if newline:
                self._heard = rest
                said = _decoded(line)
                if key in said:
                    return said
                continue
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                raise ChildError(f"{self.name} said no {key!r} within {within_s} s\n{self.errors()}")
            chunk = os.read(self._stdout.fileno(), 65536)
            if not chunk:
                raise ChildError(f"{self.name} ended\n{self.errors()}")
            self._heard += chunk

    def port(self, within_s: float = 20.0) -> int:
        """The port that a server says it is listening on."""
        return int(self.hear("listening", within_s)["listening"].rpartition(":")[2])

    def tell(self, do: str, **arguments: Any) -> None:
        """Gives an order; the answer is still to be heard."""
        self._stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")

    def ask(self, do: str, key: str, within_s: float, **arguments: Any) -> dict[str, Any]:
        """Gives an order and returns the answer, which has `key`."""
        self.tell(do, **arguments)
        return self.hear(key, within_s)

    def errors(self) -> str:
        """The end of what the process wrote to stderr."""
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 4000))
        return self._log.read().decode(errors="replace")

    def tracebacks(self) -> int:
        """How many tracebacks it wrote to stderr."""
        self._log.seek(0)
        return self._log.read().count(b"Traceback (most recent call last)")

    def stop(self, grace_s: float = 10.0) -> None:
        """Ends the process: input closed and SIGTERM, then SIGKILL."""
        self._stdin.close()
        self._process.terminate()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._selector.close()
        self._stdout.close()
        self._log.close()


def _decoded(line: bytes) -> dict[str, Any]:
    """A JSON object said on stdout; `{"printed": …}` for anything else."""
    try:
        said = json.loads(line)
    except ValueError:
        said = None
    return said if isinstance(said, dict) else {"printed": line.decode(errors="replace")}


class Testbed:
    """The processes of one measurement; `closing` it ends them in the order opposite to their start."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self._folder = Path(tempfile.mkdtemp(prefix="trunkline-bench-"))

    def start(self, name: str, *argv: str, env: dict[str, str] | None = None) -> Child:
        """Starts a process."""
        child = Child(name, *argv, env=env)
        self.children.append(child)
        return child

    def server(self, name: str, *argv: str, env: dict[str, str] | None = None) -> tuple[Child, int]:
        """Starts a process that says what it listens on; returns it and the port."""
        child = self.start(name, *argv, env=env)
        return child, child.port()

    def generator(self, name: str, *ports: int) -> Child:
        """Starts a load generator, `bench.loadgen.<name>`, and waits until it takes orders."""
        child = self.start(name, "-m", f"bench.loadgen.{name}", *map(str, ports))
        child.hear("ready", 20)
        return child

    def router(self, tenants: str = "") -> tuple[Child, int]:
        """Starts a router with an empty log on a disk.

        `tenants` is the text of its tenants file; without it there is TENANT, with no limits.
        """
        file = self.folder("tenants") / "tenants.toml"
        file.write_text(tenants or tenant_toml(TENANT))
        env = {
            "TRUNKLINE_ROUTER_LISTEN": "127.0.0.1:0",
            "TRUNKLINE_DATA_DIR": str(self.folder("router")),
            "TRUNKLINE_TENANTS_FILE": str(file),
        }
        return self.server("router", "-m", "trunkline_router", "serve", env=env)

    def bridge(self, tenants: str = "") -> tuple[int, int]:
        """Starts a router, as above, and an edge that is linked to it; returns the ports of both."""
        _, router_port = self.router(tenants)
        env = {
            "TRUNKLINE_EDGE_LISTEN": "127.0.0.1:0",
            "TRUNKLINE_ROUTER": f"127.0.0.1:{router_port}",
            "TRUNKLINE_DATA_DIR": str(self.folder("edge")),
        }
        _, edge_port = self.server("edge", "-m", "trunkline_edge", "serve", env=env)
        return router_port, edge_port

    def folder(self, name: str) -> Path:
        """A folder that is removed with the stage."""
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        return folder

    def tracebacks(self) -> dict[str, int]:
        """Tracebacks by process, of those that wrote any."""
        return {child.name: count for child in self.children if (count := child.tracebacks())}

    def close(self) -> None:
        """Ends all processes and removes the stage's files."""
        for child in reversed(self.children):
            child.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def testbed() -> Iterator[Testbed]:
    """A stage that is closed in any case."""
    opened = Testbed()
    try:
        yield opened
    finally:
        opened.close()
