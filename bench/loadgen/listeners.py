"""Load generator: subscribers whose received bytes are compared and counted.

One thread, one poller and one buffer serve all sockets, because the process shares the cores with the servers
it measures. Commands: `open` · `begin` (a phase) · `finish` (wait for its last message) · `close`.
"""

import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from bench.commands import Result, emit, serve_commands_between
from bench.loadgen.chat_frames import closing_reason, is_closing
from bench.loadgen.chat_text import mark_of
from bench.loadgen.connector import Endpoint, open_all, raise_file_limit
from bench.loadgen.latency import Latencies
from bench.loadgen.shared_stream import Reader, SharedStream, StreamMismatchError
from bench.loadgen.stream_checks import check_stream
from bench.loadgen.websocket_frames import CLOSE, GOODBYE, PING, PONG, client_frame

BUFFER_BYTES = 256 * 1024
SAMPLE_EVERY = 50
MAX_SAMPLES = 200_000


class Listener:
    """Subscriber; `arrivals` are `(time, offset)` pairs, recorded for every 50th one only."""

    __slots__ = ("arrivals", "reader", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.reader = Reader(SharedStream())
        self.arrivals: list[tuple[int, int]] | None = None


class Listeners:
    """All subscribers of this process."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._poller = select.epoll()
        self._poller.register(sys.stdin.fileno(), select.EPOLLIN)
        self._by_fd: dict[int, Listener] = {}
        self._view = memoryview(bytearray(BUFFER_BYTES))
        self._stream = SharedStream()
        self._last_ns = 0
        self._pause_s = 0.0
        self._faults: Counter[str] = Counter()
        self._dropped_bytes = 0
        self._subprotocol: str | None = None

    def serve(self) -> None:
        """Execute commands until end of file on stdin; receive in between."""
        actions: dict[str, Callable[..., Result]] = {
            "open": self.open,
            "begin": self.begin,
            "finish": self.finish,
            "close": self.close,
        }
        serve_commands_between(lambda: self._receive(None), actions)

    def open(self, endpoint: dict[str, Any], count: int, at_a_time: int, first: int = 0) -> Result:
        """Open additional connections."""
        opened = open_all(Endpoint(port=self._port, **endpoint), count, at_a_time, first)
        self._subprotocol = endpoint.get("subprotocol")
        for sock in opened.sockets:
            self._by_fd[sock.fileno()] = Listener(sock)
            self._poller.register(sock.fileno(), select.EPOLLIN)
        return {
            "opened": len(opened.sockets),
            "refused": len(opened.refusals),
            "refusals": opened.refusals[:3],
            "elapsed_s": opened.elapsed_s,
            "latency": opened.latencies.figures(),
        }

    def begin(self, pause_s: float) -> Result:
        """Begin a phase: all listeners start at the beginning of a new stream.

        A pause before each round of reads spares a saturated server from waking this process on every write.
        It favours servers that write often, and adds to the latencies.
        """
        self._pause_s = pause_s
        subprotocol = self._subprotocol
        self._stream = SharedStream(lambda frame: is_closing(frame, subprotocol))
        self._faults, self._dropped_bytes = Counter(), 0
        for number, listener in enumerate(self._by_fd.values()):
            listener.reader = Reader(self._stream)
            listener.arrivals = [] if number % SAMPLE_EVERY == 0 else None
        return {"listeners": len(self._by_fd)}

    def finish(self, messages: int, drained_within_s: float) -> Result:
        """Wait until all listeners have all messages or the timeout expires; return the figures."""
        deadline = time.monotonic() + drained_within_s
        while not self._all_received(messages) and time.monotonic() < deadline:
            self._receive(0.05)
        payloads = self._stream.payloads()
        offsets = [listener.reader.offset for listener in self._by_fd.values()]
        end = self._stream.starts[-1]
        return {
            "messages": len(payloads),
            "stream_bytes": len(self._stream.data),
            "received_bytes": sum(offsets) + self._dropped_bytes,
            "listeners_with_all": sum(offset == end for offset in offsets),
            "listeners": len(offsets),
            "last_ns": self._last_ns,
            "faults": dict(self._faults.most_common(5)),
            **check_stream(payloads, self._subprotocol),
            "latency": self._latencies(payloads),
        }

    def close(self) -> Result:
        """Close all connections with a close frame."""
        goodbye = client_frame(GOODBYE, CLOSE)
        for fd, listener in self._by_fd.items():
            self._poller.unregister(fd)
            try:
                listener.sock.send(goodbye)
            except OSError:
                self._faults["could not send a close frame"] += 1
            listener.sock.close()
        closed = len(self._by_fd)
        self._by_fd.clear()
        return {"closed": closed}

    def _receive(self, timeout_s: float | None) -> bool:
        """Receive until a command arrives (True) or the timeout expires (False)."""
        stdin, view, by_fd = sys.stdin.fileno(), self._view, self._by_fd
        while events := self._poller.poll(timeout_s):
            if self._pause_s:
                time.sleep(self._pause_s)
            now = time.monotonic_ns()
            has_command = False
            for fd, _ in events:
                if fd == stdin:
                    has_command = True
                    continue
                listener = by_fd[fd]
                try:
                    size = listener.sock.recv_into(view)
                    if not size:
                        raise ConnectionError("closed by the server")
                    self._take(listener, view[:size], now)
                except (OSError, StreamMismatchError) as fault:
                    self._drop(fd, str(fault))
                if listener.arrivals is not None:
                    listener.arrivals.append((time.monotonic_ns(), listener.reader.offset))
            if timeout_s is not None:
                return False
            if has_command:
                return True
        return False

    def _take(self, listener: Listener, chunk: memoryview, now_ns: int) -> None:
        reader = listener.reader
        reader.feed(chunk)
        if not reader.aside:
            self._last_ns = now_ns
            return
        for opcode, payload in reader.aside:
            if opcode == PING:
                listener.sock.send(client_frame(payload, PONG))
            elif opcode < CLOSE:
                self._faults[f"closed by the server: {closing_reason(payload, self._subprotocol)}"] += 1
        reader.aside.clear()

    def _drop(self, fd: int, fault: str) -> None:
        listener = self._by_fd.pop(fd)
        self._faults[fault] += 1
        self._dropped_bytes += listener.reader.offset
        self._poller.unregister(fd)
        listener.sock.close()

    def _all_received(self, messages: int) -> bool:
        stream = self._stream
        if len(stream.starts) - 1 < messages:
            return not self._by_fd
        return all(listener.reader.offset >= stream.starts[-1] for listener in self._by_fd.values())

    def _latencies(self, payloads: list[bytes]) -> dict[str, float]:
        """Measure from when each message was due until the sampled listeners had received it completely."""
        sampled = [listener for listener in self._by_fd.values() if listener.arrivals]
        step = max(1, len(payloads) * len(sampled) // MAX_SAMPLES)
        ends = self._stream.starts[1:]
        marks = [(ends[at], mark_of(payloads[at])) for at in range(0, len(payloads), step)]
        latencies = Latencies()
        for listener in sampled:
            arrivals = iter(listener.arrivals or ())
            arrived_ns, offset = next(arrivals)
            for end, mark in marks:
                while offset < end:
                    arrived_ns, offset = next(arrivals, (0, end))
                if mark and arrived_ns:
                    latencies.add_ns(arrived_ns - mark[0])
        return latencies.figures()


def main(port: int) -> None:
    """Raise the limit of open files and serve commands."""
    raise_file_limit()
    emit(ready=True)
    Listeners(port).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))
