"""Opens many WebSockets from one thread, a bounded number at a time."""

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
    """Where to connect to. In `target`, `{n}` stands for the connection's number, `{token}` for its token."""

    port: int
    target: str
    subprotocol: str | None = None
    signing: dict[str, str] | None = None
    """What tokens are signed with: the arguments of `Signing`."""
    greeted: bool = False
    """The server says something first; a connection counts once that frame is there."""


@dataclass(slots=True)
class OpenedConnections:
    """What became of the attempts."""

    sockets: list[socket.socket] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """Of the connections in `sockets`."""
    refusals: list[str] = field(default_factory=list)
    elapsed_s: float = 0.0
    latencies: Latencies = field(default_factory=Latencies)


def raise_file_limit() -> None:
    """As many open files as this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Attempt:
    __slots__ = ("number", "received", "request", "sock", "started_ns")

    def __init__(self, door: Endpoint, number: int, target: str) -> None:
        self.number = number
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = upgrade_request(f"127.0.0.1:{door.port}", target, door.subprotocol)
        self.received = b""
        self.started_ns = time.monotonic_ns()
        status = self.sock.connect_ex(("127.0.0.1", door.port))
        if status not in (0, errno.EINPROGRESS):
            raise OSError(status, "connect failed")

    def done(self, greeted: bool) -> bool:
        """Reads what is there; True once the connection counts. Raises OSError where it never will."""
        chunk = self.sock.recv(4096)
        self.received += chunk
        head_end = self.received.find(HEAD_END)
        if head_end >= 0:
            if not self.received.startswith(b"HTTP/1.1 101"):
                raise OSError(f"refused: {self.received[:300]!r}")
            frames = self.received[head_end + len(HEAD_END) :]
            if not greeted:
                return True
            header = next_frame(frames, 0)
            if header and header[2] <= len(frames):
                return True
        if not chunk:
            raise OSError(f"closed during the handshake: {self.received[:300]!r}")
        return False


def open_all(door: Endpoint, count: int, at_a_time: int, first: int = 0) -> OpenedConnections:
    """Opens `count` connections, numbered from `first`; the sockets returned do not block."""
    opened = OpenedConnections()
    # Tokens are signed before the clock starts.
    targets = iter([(number, _target(door, number)) for number in range(first, first + count)])
    poller = select.epoll()
    waiting: dict[int, _Attempt] = {}
    began = time.monotonic()
    _start(poller, door, targets, waiting, at_a_time)
    while waiting:
        for fd, event in poller.poll(TIMEOUT_S) or _timed_out():
            attempt = waiting[fd]
            try:
                if event & select.EPOLLOUT:
                    attempt.sock.send(attempt.request)
                    poller.modify(fd, select.EPOLLIN)
                    continue
                if not attempt.done(door.greeted):
                    continue
                opened.latencies.add_ns(time.monotonic_ns() - attempt.started_ns)
                opened.sockets.append(attempt.sock)
                opened.numbers.append(attempt.number)
                poller.unregister(fd)
            except OSError as refusal:
                opened.refusals.append(str(refusal))
                attempt.sock.close()
            del waiting[fd]
        _start(poller, door, targets, waiting, at_a_time)
    opened.elapsed_s = time.monotonic() - began
    poller.close()
    return opened


def _start(
    poller: select.epoll,
    door: Endpoint,
    targets: Iterator[tuple[int, str]],
    waiting: dict[int, _Attempt],
    at_a_time: int,
) -> None:
    """Starts further attempts until as many are waiting as may."""
    while len(waiting) < at_a_time and (wanted := next(targets, None)) is not None:
        attempt = _Attempt(door, *wanted)
        waiting[attempt.sock.fileno()] = attempt
        poller.register(attempt.sock.fileno(), select.EPOLLOUT)


def _target(door: Endpoint, number: int) -> str:
    target = door.target.replace("{n}", str(number))
    if door.signing is None:
        return target
    return target.replace("{token}", TokenSigner(**door.signing).token(f"u{number}"))


def _timed_out() -> list[tuple[int, int]]:
    raise TimeoutError(f"no handshake made progress for {TIMEOUT_S} s")
