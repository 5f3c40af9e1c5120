"""Run Trunkline locally: a router, an edge and two agents. `make run` runs this.

    TRUNKLINE_EDGE_LISTEN     address for clients; default 127.0.0.1:8080
    TRUNKLINE_ROUTER_LISTEN   address for backends and workers; default 127.0.0.1:50051
    TRUNKLINE_DATA_DIR        directory for messages and process logs; default ./data

All other TRUNKLINE_ variables are passed on to the processes, the router's secrets to the router only. Ctrl-C
or SIGTERM stops them in reverse start order; a second signal kills them. If this process is killed, its guard
kills them.
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
from trunkline_runtime.listen_address import ListenAddress

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
EDGE_LISTEN = "TRUNKLINE_EDGE_LISTEN"
ROUTER_LISTEN = "TRUNKLINE_ROUTER_LISTEN"
TENANTS_FILE = ROOT / "deploy" / "demo.toml"
# Keys that only the router needs.
ROUTER_SECRETS = ("TRUNKLINE_DATA_KEY", "TRUNKLINE_DATA_KEY_FILE", "TRUNKLINE_OPERATOR_KEY")
READY_TIMEOUT_S = 30
# Example script of each agent.
AGENTS = {"echo": "echo_agent.py", "guide": "streaming_agent.py"}
STOP_TIMEOUT_S = 15
# A process that was just killed may keep its port for a moment.
PORT_TIMEOUT_S = 1
PARENT_CHECK_INTERVAL_S = 1
LOG_TAIL_LINES = 15


class RunError(Exception):
    """The run cannot start or continue; `str()` is the message to print."""


class LinePrinted(NamedTuple):
    """A child wrote a line to stdout."""

    child: Child
    text: str


class Exited(NamedTuple):
    """A child exited."""

    child: Child


class StopRequested(NamedTuple):
    """SIGINT, SIGTERM or SIGHUP was received."""


Event = LinePrinted | Exited | StopRequested


@dataclass(eq=False)
class Child:
    """Child process. stdout and stderr are written to `log`; stdout lines are also put into `events`."""

    name: str
    command: list[str]
    env: dict[str, str]
    log: Path
    events: SimpleQueue[Event]
    process: subprocess.Popen[str] = field(init=False)

    def start(self) -> None:
        with self.log.open("w") as log:
            # In a session of its own the child does not receive Ctrl-C: this process stops the children
            # in order.
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
        """Terminate the child, kill it after STOP_TIMEOUT_S, and wait until it has exited."""
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log_tail(self) -> str:
        """Last lines of the log, indented."""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
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
    """Processes of one run, in start order."""

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
        """Start a process with this Python interpreter."""
        logs = self._data / "logs"
        logs.mkdir(mode=0o700, exist_ok=True)
        complete = {**os.environ, "PYTHONUNBUFFERED": "1", "TRUNKLINE_DATA_DIR": str(self._data), **env}
        if name != "router":
            for secret in ROUTER_SECRETS:
                complete.pop(secret, None)
        child = Child(name, [sys.executable, *arguments], complete, logs / f"{name}.log", self._events)
        child.start()
        self._guard.add(child.process.pid)
        self._children.append(child)
        return child

    def wait_for(self, child: Child, ready: Callable[[str], str]) -> str:
        """Wait for the first stdout line of `child` for which `ready` returns text, and return that text.

        Raises RunError if any child exits or no such line arrives within READY_TIMEOUT_S, and
        KeyboardInterrupt if a stop is requested.
        """
        until = time.monotonic() + READY_TIMEOUT_S
        while True:
            try:
                event = self._next(until - time.monotonic())
            except Empty:
                text = f"The {child.name} was not ready within {READY_TIMEOUT_S} s. Last lines of its log:"
                raise RunError(f"{text}\n{child.log_tail()}") from None
            if event.child is child and (found := ready(event.text)):
                return found

    def wait(self) -> None:
        """Wait until the run ends. Always raises RunError or KeyboardInterrupt, like `wait_for`."""
        while True:
            with suppress(Empty):
                self._next(PARENT_CHECK_INTERVAL_S)
            if "MAKELEVEL" in os.environ and os.getppid() != self._parent:
                # `make` was killed: its caller assumes that the run has ended and may start another.
                self.kill()
                raise KeyboardInterrupt

    def stop(self) -> None:
        """Stop all processes in reverse start order. Call at most once, at any time."""
        for child in reversed(self._children):
            child.stop()
            self._guard.forget(child.process.pid)
        self._guard.close()

    def kill(self) -> None:
        """Kill all processes. The caller must still call `stop`."""
        for child in self._children:
            child.process.kill()

    def _next(self, timeout_s: float) -> LinePrinted:
        event = self._events.get(timeout=max(timeout_s, 0))
        match event:
            case StopRequested():
                raise KeyboardInterrupt
            case Exited(child):
                code = child.process.returncode
                ending = (
                    f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
                )
                raise RunError(
                    f"The {child.name} {ending}. Last lines of {display(child.log)}:\n{child.log_tail()}"
                )
        return event

    def _on_signal(self, number: int, frame: Any) -> None:
        self._signals += 1
        if self._signals == 1:
            self._events.put(StopRequested())
        else:
            self.kill()


def main() -> int:
    """Run until stopped. Returns the exit code: 0 if a stop was requested, else 1."""
    edge_listen = os.environ.get(EDGE_LISTEN) or "127.0.0.1:8080"
    router_listen = os.environ.get(ROUTER_LISTEN) or "127.0.0.1:50051"
    data = Path(os.environ.get("TRUNKLINE_DATA_DIR") or ROOT / "data").absolute()
    try:
        check_free(ROUTER_LISTEN, router_listen)
        check_free(EDGE_LISTEN, edge_listen)
        make_folder(data)
    except RunError as error:
        print_text(str(error), to=sys.stderr)
        return 1
    run = Run(data)
    code = 0
    try:
        start_all(run, edge_listen, router_listen, data)
        run.wait()
    except KeyboardInterrupt:
        print_text("\nStopping")
    except RunError as error:
        print_text(str(error), to=sys.stderr)
        code = 1
    run.stop()
    return code


def start_all(run: Run, edge_listen: str, router_listen: str, data: Path) -> None:
    """Start each process when the one before it is ready, then print the welcome text."""
    print_text("Starting router, edge, and the agents `echo` and `guide`")
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
    print_text(welcome(edge, router, data))


def welcome(edge: str, router: str, data: Path) -> str:
    """Text printed when everything is ready. The last two lines are shell commands."""
    python = display(Path(sys.executable))
    url_option = "" if edge == "127.0.0.1:8080" else f" --url ws://{edge}"
    router_option = "" if router == "127.0.0.1:50051" else f" --router {router}"
    query = "tenant=demo&agent=echo&platform=web&conversation=person:you"
    return f"""
Trunkline is running. Tenant `demo` needs no token on this machine; nothing else is open.
Press Ctrl-C to stop. Messages are stored in {display(data)}, process logs in {display(data)}/logs.

    WebSocket   ws://{edge}/v1/connect?{query}
    gRPC        {router}
    HTTP/JSON   http://{edge}/openapi.json
    Health      http://{edge}/healthz
    Metrics     http://{edge}/metrics

Try it in another terminal: send a message to everyone in `demo`, as a backend does, or talk to the agent
`guide` (ask it for a story; Ctrl-C cancels a reply):

{python} -m trunkline_client broadcast{router_option} "Tea is ready"
{python} -m trunkline_client chat{url_option}"""


def listening(line: str) -> str:
    """Address in a readiness line, `{"listening": "host:port"}`; empty for any other line."""
    try:
        return str(json.loads(line)["listening"])
    except (ValueError, KeyError, TypeError):
        return ""


def reachable(listen: str) -> str:
    """Address for connecting to a listener from this machine: clients cannot dial `0.0.0.0`."""
    return ListenAddress.parse(listen).reachable


def check_free(variable: str, listen: str) -> None:
    """Raise RunError, naming the variable to change, if the address cannot be bound."""
    try:
        address = ListenAddress.parse(listen)
    except ValueError as error:
        raise RunError(f"{variable}: {error}") from None
    if address.path:
        raise RunError(f"{variable}: `make run` prints URLs, which a Unix socket has not; use host:port")
    until = time.monotonic() + PORT_TIMEOUT_S
    while (problem := bind_error(address.host, address.port)) and time.monotonic() < until:
        time.sleep(0.05)
    if problem:
        change = f"To use another address: make run {variable}=127.0.0.1:{address.port + 1}"
        raise RunError(f"Cannot listen on {listen}: {problem}. {change}")


def bind_error(host: str, port: int) -> str:
    """Reason why a socket cannot be bound to an address; empty if it can.

    Checks without SO_REUSEPORT. gRPC sets that option, so two routers on one port would each get half of the
    calls.
    """
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
    """Create the directory for messages and logs, or raise RunError."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"TRUNKLINE_DATA_DIR: cannot create {data}: {error.strerror}") from None


def display(path: Path) -> str:
    """Path relative to the current directory if it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def print_text(text: str, to: Any = None) -> None:
    """Print a text; ignore a closed terminal."""
    with suppress(OSError):
        print(text, file=to or sys.stdout, flush=True)


if __name__ == "__main__":
    sys.exit(main())
