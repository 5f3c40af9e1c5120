"""Child processes of a benchmark: servers, load generators and the testbed that runs them."""

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
OPERATOR_KEY = "operator-of-the-benchmarks"

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
"""Limits that are never reached but checked like any others."""


def tenant_toml(tenant: str, limits: str = UNLIMITED, more: str = "") -> str:
    """Return a tenant for a tenants file that is open to this machine; `more` contains further tables."""
    return f'[tenants.{tenant}]\nopen_to = "loopback"\n{more}\n[tenants.{tenant}.limits]\n{limits}\n'


class ChildError(Exception):
    """A process exited or did not answer in time; the text ends with its last stderr output."""


class Child:
    """Child process that is controlled by JSON lines; see `bench.commands`."""

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
        self._received = b""
        self.meter = psutil.Process(self._process.pid)

    def wait_for(self, key: str, within_s: float) -> dict[str, Any]:
        """Return the next JSON line that contains `key`; raise ChildError if none arrives in time."""
        deadline = time.monotonic() + within_s
        while True:
            line, newline, rest = self._received.partition(b"\n")
            if newline:
                self._received = rest
                fields = _decode(line)
                if key in fields:
                    return fields
                continue
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                raise ChildError(f"{self.name} sent no {key!r} within {within_s} s\n{self.errors()}")
            chunk = os.read(self._stdout.fileno(), 65536)
            if not chunk:
                raise ChildError(f"{self.name} exited\n{self.errors()}")
            self._received += chunk

    def port(self, within_s: float = 20.0) -> int:
        """Wait until a server listens and return its port."""
        return int(self.wait_for("listening", within_s)["listening"].rpartition(":")[2])

    def send(self, do: str, **arguments: Any) -> None:
        """Send a command; the caller must wait for the result."""
        self._stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")

    def call(self, do: str, key: str, within_s: float, **arguments: Any) -> dict[str, Any]:
        """Send a command and return its result, which contains `key`."""
        self.send(do, **arguments)
        return self.wait_for(key, within_s)

    def errors(self) -> str:
        """Return the last 4,000 bytes of stderr."""
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 4000))
        return self._log.read().decode(errors="replace")

    def tracebacks(self) -> int:
        """Count the tracebacks on stderr."""
        self._log.seek(0)
        return self._log.read().count(b"Traceback (most recent call last)")

    def stop(self, grace_s: float = 10.0) -> None:
        """Close stdin and send SIGTERM; after `grace_s` send SIGKILL."""
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


def _decode(line: bytes) -> dict[str, Any]:
    """Decode a JSON object; any other line becomes `{"printed": …}`."""
    try:
        fields = json.loads(line)
    except ValueError:
        fields = None
    return fields if isinstance(fields, dict) else {"printed": line.decode(errors="replace")}


class Skipped(Exception):
    """A scenario cannot run on this machine; the text says why."""


class Testbed:
    """Processes and files of one measurement; `close` stops the processes in reverse start order."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self._folder = Path(tempfile.mkdtemp(prefix="trunkline-bench-"))

    def start(self, name: str, *argv: str, env: dict[str, str] | None = None) -> Child:
        """Start a process."""
        child = Child(name, *argv, env=env)
        self.children.append(child)
        return child

    def server(self, name: str, *argv: str, env: dict[str, str] | None = None) -> tuple[Child, int]:
        """Start a server; return its process and port."""
        child = self.start(name, *argv, env=env)
        return child, child.port()

    def generator(self, name: str, *ports: int) -> Child:
        """Start the load generator `bench.loadgen.<name>` and wait until it accepts commands."""
        child = self.start(name, "-m", f"bench.loadgen.{name}", *map(str, ports))
        child.wait_for("ready", 20)
        return child

    def router(
        self, tenants: str = "", database_url: str = "", listen: str = "127.0.0.1:0"
    ) -> tuple[Child, int]:
        """Start a router with an empty log on disk.

        `tenants` is the content of its tenants file; by default TENANT with unreachable limits.
        `database_url` is a PostgreSQL database for its log, which other routers may share.
        """
        file = self.folder("tenants") / "tenants.toml"
        file.write_text(tenants or tenant_toml(TENANT))
        env = {
            "TRUNKLINE_ROUTER_LISTEN": listen,
            "TRUNKLINE_DATA_DIR": str(self.folder("router")),
            "TRUNKLINE_TENANTS_FILE": str(file),
            "TRUNKLINE_DATABASE_URL": database_url,
            # Required with a database.
            "TRUNKLINE_OPERATOR_KEY": OPERATOR_KEY,
        }
        return self.server("router", "-m", "trunkline_router", "serve", env=env)

    def bridge(self, tenants: str = "", database_url: str = "") -> tuple[int, int]:
        """Start a router and an edge linked to it; return the ports of both."""
        _, router_port = self.router(tenants, database_url)
        env = {
            "TRUNKLINE_EDGE_LISTEN": "127.0.0.1:0",
            "TRUNKLINE_ROUTER": f"127.0.0.1:{router_port}",
            "TRUNKLINE_DATA_DIR": str(self.folder("edge")),
        }
        _, edge_port = self.server("edge", "-m", "trunkline_edge", "serve", env=env)
        return router_port, edge_port

    def folder(self, name: str) -> Path:
        """Create a directory that is removed with the testbed."""
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        return folder

    def tracebacks(self) -> dict[str, int]:
        """Count tracebacks by process; processes without any are left out."""
        return {child.name: count for child in self.children if (count := child.tracebacks())}

    def close(self) -> None:
        """Stop all processes and remove all files."""
        for child in reversed(self.children):
            child.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def testbed() -> Iterator[Testbed]:
    """Yield a testbed and close it at the end."""
    opened = Testbed()
    try:
        yield opened
    finally:
        opened.close()
