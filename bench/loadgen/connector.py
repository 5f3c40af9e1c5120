"""Opens many WebSockets from one thread, with a bounded number of handshakes in progress."""

import errno
import resource
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from bench.loadgen.latency import Latencies
from bench.loadgen.token_signer import TokenSigner
from bench.loadgen.websocket_frames import HEAD_END, next_frame, upgrade_request

TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """WebSocket endpoint. `{n}` in `target` is replaced by a connection's number, `{token}` by its token."""

    port: int
    target: str
    subprotocol: str | None = None
    signing: dict[str, str] | None = None
    """Arguments of `TokenSigner`; None if clients need no token."""
    waits_for_frame: bool = False
    """The server sends the first frame; a connection counts once it has arrived."""


@dataclass(slots=True)
class OpenedConnections:
    """Outcome of all connection attempts."""

    sockets: list[socket.socket] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """Numbers of the connections in `sockets`, in the same order."""
    refusals: list[str] = field(default_factory=list)
    elapsed_s: float = 0.0
    latencies: Latencies = field(default_factory=Latencies)


def raise_file_limit() -> None:
    """Raise the limit of open files to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Attempt:
    __slots__ = ("number", "received", "request", "sock", "started_ns")

    def __init__(self, endpoint: Endpoint, number: int, target: str) -> None:
        self.number = number
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = upgrade_request(f"127.0.0.1:{endpoint.port}", target, endpoint.subprotocol)
        self.received = b""
        self.started_ns = time.monotonic_ns()
        status = self.sock.connect_ex(("127.0.0.1", endpoint.port))
        if status not in (0, errno.EINPROGRESS):
            raise OSError(status, "connect failed")

    def done(self, waits_for_frame: bool) -> bool:
        """Read available bytes; return True once the connection counts. Raises OSError if it failed."""
        chunk = self.sock.recv(4096)
        self.received += chunk
        head_end = self.received.find(HEAD_END)
        if head_end >= 0:
            if not self.received.startswith(b"HTTP/1.1 101"):
                raise OSError(f"rejected: {self.received[:300]!r}")
            frames = self.received[head_end + len(HEAD_END) :]
            if not waits_for_frame:
                return True
            header = next_frame(frames, 0)
            if header and header[2] <= len(frames):
                return True
        if not chunk:
            raise OSError(f"closed during the handshake: {self.received[:300]!r}")
        return False


def open_all(endpoint: Endpoint, count: int, at_a_time: int, first: int = 0) -> OpenedConnections:
    """Open `count` connections, numbered from `first`; the returned sockets are non-blocking."""
    opened = OpenedConnections()
    # Tokens are signed before the clock starts.
    targets = iter([(number, _target(endpoint, number)) for number in range(first, first + count)])
    poller = select.epoll()
    pending: dict[int, _Attempt] = {}
    began = time.monotonic()
    _start(poller, endpoint, targets, pending, at_a_time)
    while pending:
        for fd, event in poller.poll(TIMEOUT_S) or _timed_out():
            attempt = pending[fd]
            try:
                if event & select.EPOLLOUT:
                    attempt.sock.send(attempt.request)
                    poller.modify(fd, select.EPOLLIN)
                    continue
                if not attempt.done(endpoint.waits_for_frame):
                    continue
                opened.latencies.add_ns(time.monotonic_ns() - attempt.started_ns)
                opened.sockets.append(attempt.sock)
                opened.numbers.append(attempt.number)
                poller.unregister(fd)
            except OSError as refusal:
                opened.refusals.append(str(refusal))
                attempt.sock.close()
            del pending[fd]
        _start(poller, endpoint, targets, pending, at_a_time)
    opened.elapsed_s = time.monotonic() - began
    poller.close()
    return opened


def _start(
    poller: select.epoll,
    endpoint: Endpoint,
    targets: Iterator[tuple[int, str]],
    pending: dict[int, _Attempt],
    at_a_time: int,
) -> None:
    """Start attempts until `at_a_time` are in progress."""
    while len(pending) < at_a_time and (wanted := next(targets, None)) is not None:
        attempt = _Attempt(endpoint, *wanted)
        pending[attempt.sock.fileno()] = attempt
        poller.register(attempt.sock.fileno(), select.EPOLLOUT)


def _target(endpoint: Endpoint, number: int) -> str:
    target = endpoint.target.replace("{n}", str(number))
    if endpoint.signing is None:
        return target
    return target.replace("{token}", TokenSigner(**endpoint.signing).token(f"u{number}"))


def _timed_out() -> list[tuple[int, int]]:
    raise TimeoutError(f"no handshake made progress for {TIMEOUT_S} s")
