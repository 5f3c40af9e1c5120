"""Run Trunkline on this machine: a router, an edge and two agents. `make run` runs this.

    TRUNKLINE_EDGE_LISTEN     where clients connect; 127.0.0.1:8080
    TRUNKLINE_ROUTER_LISTEN   where backends and workers connect; 127.0.0.1:50051
    TRUNKLINE_DATA_DIR        where messages are kept, and the processes' own logs; ./data

Every other TRUNKLINE_ variable reaches the processes as it is. Ctrl-C or SIGTERM stops them in
order; a second one kills them. Should this process be killed, its guard kills them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from guard import Guard

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
EDGE_LISTEN = "TRUNKLINE_EDGE_LISTEN"
ROUTER_LISTEN = "TRUNKLINE_ROUTER_LISTEN"
TENANTS_FILE = ROOT / "deploy" / "demo.toml"
READY_TIMEOUT_S = 30
# The agents' names, and the examples that serve them.
AGENTS = {"echo": "echo_agent.py", "guide": "streaming_agent.py"}
STOP_TIMEOUT_S = 15
# A process of an earlier run, just killed, may hold its port for a moment.
PORT_TIMEOUT_S = 1
PARENT_CHECK_INTERVAL_S = 1
LOG_LINES_SHOWN = 15


class RunError(Exception):
    """The run can't start or go on; `str()` is what to tell the person who started it."""


class LinePrinted(NamedTuple):
    """A child printed a line to its stdout."""

    child: Child
    text: str


class Exited(NamedTuple):
    """A child has ended."""

    child: Child


class StopAsked(NamedTuple):
    """A signal came."""


Event = LinePrinted | Exited | StopAsked


@dataclass(eq=False)
class Child:
    """One of the processes. Its stderr goes to `log`; its stdout goes there too, and to `events`."""

    name: str
    command: list[str]
    env: dict[str, str]
    log: Path
    events: SimpleQueue[Event]
    process: subprocess.Popen[str] = field(init=False)

    def start(self) -> None:
        with self.log.open("w") as log:
            # A session of its own: Ctrl-C in the terminal reaches this process only, which stops the
            # children in order.
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        threading.Thread(target=self._read, name=f"{self.name} stdout", daemon=True).start()

    def stop(self) -> None:
        """Ask the child to end, kill it if it takes too long, and wait until it is gone."""
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def last_words(self) -> str:
        """The end of its log, indented."""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        return "\n".join(f"    {line}" for line in lines)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.log.open("a") as log, self.process.stdout as lines:
            for line in lines:
                log.write(line)
                log.flush()
                self.events.put(LinePrinted(self, line.rstrip("\n")))
        self.process.wait()
        self.events.put(Exited(self))


class Run:
    """The processes of one run, in the order in which they were started."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._guard = Guard()
        self._children: list[Child] = []
        self._signals = 0
        self._parent = os.getppid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._on_signal)

    def start(self, name: str, arguments: list[str], env: dict[str, str]) -> Child:
        """Start one more process, with this interpreter."""
        logs = self._data / "logs"
        logs.mkdir(exist_ok=True)
        complete = {**os.environ, "PYTHONUNBUFFERED": "1", "TRUNKLINE_DATA_DIR": str(self._data), **env}
        child = Child(name, [sys.executable, *arguments], complete, logs / f"{name}.log", self._events)
        child.start()
        self._guard.add(child.process.pid)
        self._children.append(child)
        return child

    def wait_for(self, child: Child, ready: Callable[[str], str]) -> str:
        """What `ready` makes of the first line of `child` for which that is not empty.

        Raises RunError when any child ends or none of its lines was the one in time, and
        KeyboardInterrupt when somebody asks for the end.
        """
        until = time.monotonic() + READY_TIMEOUT_S
        while True:
            try:
                event = self._next(until - time.monotonic())
            except Empty:
                text = f"The {child.name} did not get ready within {READY_TIMEOUT_S} s. Its log ends:"
                raise RunError(f"{text}\n{child.last_words()}") from None
            if event.child is child and (found := ready(event.text)):
                return found

    def wait(self) -> None:
        """Until something ends the run. Raises RunError or KeyboardInterrupt, as `wait_for` does."""
        while True:
            with suppress(Empty):
                self._next(PARENT_CHECK_INTERVAL_S)
            if "MAKELEVEL" in os.environ and os.getppid() != self._parent:
                # `make` was killed, so whoever started it thinks that all is over, and may start again.
                self.kill()
                raise KeyboardInterrupt

    def stop(self) -> None:
        """Stop what was started last first. May be called at any time, once."""
        for child in reversed(self._children):
            child.stop()
            self._guard.forget(child.process.pid)
        self._guard.close()

    def kill(self) -> None:
        """Kill them all; `stop` is still to be called."""
        for child in self._children:
            child.process.kill()

    def _next(self, timeout_s: float) -> LinePrinted:
        event = self._events.get(timeout=max(timeout_s, 0))
        match event:
            case StopAsked():
                raise KeyboardInterrupt
            case Exited(child):
                code = child.process.returncode
                how = (
                    f"was killed by {signal.Signals(-code).name}"
                    if code < 0
                    else f"ended with exit code {code}"
                )
                raise RunError(
                    f"The {child.name} {how}. Its log, {shown(child.log)}, ends:\n{child.last_words()}"
                )
        return event

    def _on_signal(self, number: int, frame: Any) -> None:
        self._signals += 1
        if self._signals == 1:
            self._events.put(StopAsked())
        else:
            self.kill()


def main() -> int:
    """Run until stopped. Returns the exit code: 0 if somebody asked for the end, else 1."""
    edge_listen = os.environ.get(EDGE_LISTEN) or "127.0.0.1:8080"
    router_listen = os.environ.get(ROUTER_LISTEN) or "127.0.0.1:50051"
    data = Path(os.environ.get("TRUNKLINE_DATA_DIR") or ROOT / "data").absolute()
    try:
        check_free(ROUTER_LISTEN, router_listen)
        check_free(EDGE_LISTEN, edge_listen)
        make_folder(data)
    except RunError as error:
        say(str(error), to=sys.stderr)
        return 1
    run = Run(data)
    code = 0
    try:
        start_all(run, edge_listen, router_listen, data)
        run.wait()
    except KeyboardInterrupt:
        say("\nStopping")
    except RunError as error:
        say(str(error), to=sys.stderr)
        code = 1
    run.stop()
    return code


def start_all(run: Run, edge_listen: str, router_listen: str, data: Path) -> None:
    """Start them, each when the one before it is ready, then say what to try."""
    say("Starting the router, the edge, and the agents `echo` and `guide`")
    tenants_file = os.environ.get("TRUNKLINE_TENANTS_FILE") or str(TENANTS_FILE)
    router_env = {ROUTER_LISTEN: router_listen, "TRUNKLINE_TENANTS_FILE": tenants_file}
    router = reachable(
        run.wait_for(run.start("router", ["-m", "trunkline_router", "serve"], router_env), listening)
    )
    edge_env = {EDGE_LISTEN: edge_listen, "TRUNKLINE_ROUTER": router}
    edge = reachable(run.wait_for(run.start("edge", ["-m", "trunkline_edge", "serve"], edge_env), listening))
    for agent, example in AGENTS.items():
        started = run.start(agent, [str(ROOT / "examples" / example)], {"TRUNKLINE_ROUTER": router})
        run.wait_for(started, lambda line: line)
    say(what_to_try(edge, router, data))


def what_to_try(edge: str, router: str, data: Path) -> str:
    """The text that a person sees when all is up. Its last line can be pasted into a shell."""
    python = shown(Path(sys.executable))
    url_option = "" if edge == "127.0.0.1:8080" else f" --url ws://{edge}"
    router_option = "" if router == "127.0.0.1:50051" else f" --router {router}"
    query = "tenant=demo&agent=echo&platform=web&conversation=person:you"
    return f"""
Trunkline runs. Tenant `demo` is open to this machine only, without a token; nothing else is open.
Ctrl-C stops it. Messages are kept in {shown(data)}, the processes' logs in {shown(data)}/logs.

    WebSocket   ws://{edge}/v1/connect?{query}
    gRPC        {router}
    HTTP/JSON   http://{edge}/openapi.json
    health      http://{edge}/healthz
    metrics     http://{edge}/metrics

In another terminal, say something as a backend does, to everybody of `demo`; or ask the agent `guide`
something, or for a story (Ctrl-C stops an answer):

{python} -m trunkline_client broadcast{router_option} "Tea is ready"
{python} -m trunkline_client chat{url_option}"""


def listening(line: str) -> str:
    """The address in a readiness line, `{"listening": "host:port"}`; empty for any other line."""
    try:
        return str(json.loads(line)["listening"])
    except (ValueError, KeyError, TypeError):
        return ""


def reachable(listen: str) -> str:
    """An address at which a process of this machine reaches a listener: `0.0.0.0` can't be dialled."""
    host, _, port = listen.rpartition(":")
    return f"127.0.0.1:{port}" if host in ("", "0.0.0.0", "[::]") else listen


def check_free(variable: str, listen: str) -> None:
    """Raise RunError, naming the variable to change, if a process could not listen there."""
    host, _, port = listen.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise RunError(f"{variable} is {listen!r}, which is not of the form host:port, like 127.0.0.1:8080")
    until = time.monotonic() + PORT_TIMEOUT_S
    while (problem := cannot_bind(host.strip("[]"), int(port))) and time.monotonic() < until:
        time.sleep(0.05)
    if problem:
        change = f"Choose another address: make run {variable}=127.0.0.1:{int(port) + 1}"
        raise RunError(f"Nothing can listen on {listen}: {problem}. {change}")


def cannot_bind(host: str, port: int) -> str:
    """Why no socket can be bound there; empty if one can. Asked without SO_REUSEPORT, which gRPC sets:
    two routers would share a port and each would get half of the calls."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[
            0
        ]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return str(error.strerror or error)
    return ""


def make_folder(data: Path) -> None:
    """Make the folder for messages and logs, or raise RunError."""
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"TRUNKLINE_DATA_DIR: {data} can't be made: {error.strerror}") from None


def shown(path: Path) -> str:
    """The path as a person in the current folder would type it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def say(text: str, to: Any = None) -> None:
    """Print, unless the terminal is gone."""
    with suppress(OSError):
        print(text, file=to or sys.stdout, flush=True)


if __name__ == "__main__":
    sys.exit(main())
