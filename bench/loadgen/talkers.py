"""Load generator: chat clients that send messages and wait for the agent's replies.

Commands: `open` · `closed_loop` (one message in flight per client) · `open_loop` (send at a rate, whether or
not replies have arrived; latencies count from when a message was due).
"""

import select
import socket
import sys
import time
from collections import Counter, deque
from typing import Any

from bench.commands import Result, emit, serve_commands_blocking
from bench.loadgen.chat_frames import is_answer, is_rejection, message_frame
from bench.loadgen.chat_text import mark_of
from bench.loadgen.connector import Endpoint, open_all
from bench.loadgen.latency import Latencies
from bench.loadgen.open_loop import OpenLoop
from bench.loadgen.websocket_frames import PING, PONG, client_frame, next_frame

ANSWERS_WITHIN_S = 10.0
MAX_BATCH = 64


class Talker:
    """Client; `in_flight` are the numbers of unanswered messages, in order."""

    __slots__ = ("in_flight", "received", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""
        self.in_flight: deque[int] = deque()


class Talkers:
    """All clients of this process."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._poller = select.epoll()
        self._by_fd: dict[int, Talker] = {}
        self._talkers: list[Talker] = []
        self._subprotocol: str | None = None
        self._sent = 0
        self._latencies = Latencies()
        self._faults: Counter[str] = Counter()

    def open(self, endpoint: dict[str, Any], count: int) -> Result:
        """Open additional connections."""
        opened = open_all(
            Endpoint(port=self._port, **endpoint), count, at_a_time=50, first=len(self._talkers)
        )
        self._subprotocol = endpoint.get("subprotocol")
        for sock in opened.sockets:
            talker = Talker(sock)
            self._talkers.append(talker)
            self._by_fd[sock.fileno()] = talker
            self._poller.register(sock.fileno(), select.EPOLLIN)
        return {"opened": len(opened.sockets), "refusals": opened.refusals[:3]}

    def closed_loop(self, seconds: float) -> Result:
        """Send from each client as soon as its last message is answered."""
        began = self._begin()
        end = began + int(seconds * 1e9)
        for talker in self._talkers:
            self._send_message(talker, time.monotonic_ns())
        answered = 0
        while (now := time.monotonic_ns()) < end:
            for talker in self._receive((end - now) / 1e9):
                answered += 1
                self._send_message(talker, time.monotonic_ns())
        return self._ended(answered, (now - began) / 1e9)

    def open_loop(self, rate: float, seconds: float) -> Result:
        """Send from clients in turn, at `rate` messages/s in total."""
        schedule = OpenLoop(rate, seconds, self._begin())
        answered = 0
        while schedule.taken < schedule.total:
            for number in schedule.take(time.monotonic_ns(), MAX_BATCH):
                self._send_message(self._talkers[number % len(self._talkers)], schedule.due_ns(number))
            answered += len(self._receive(schedule.wait_s(time.monotonic_ns())))
        return self._ended(answered, seconds)

    def _begin(self) -> int:
        self._latencies, self._faults = Latencies(), Counter()
        return time.monotonic_ns()

    def _ended(self, answered: int, elapsed_s: float) -> Result:
        """Wait for outstanding replies and return the figures."""
        deadline = time.monotonic() + ANSWERS_WITHIN_S
        while any(talker.in_flight for talker in self._talkers) and time.monotonic() < deadline:
            self._receive(0.05)
        unanswered = sum(len(talker.in_flight) for talker in self._talkers)
        for talker in self._talkers:
            talker.in_flight.clear()
        return {
            "answered": answered,
            "elapsed_s": elapsed_s,
            "unanswered": unanswered,
            "faults": dict(self._faults.most_common(5)),
            "latency": self._latencies.figures(),
        }

    def _send_message(self, talker: Talker, due_ns: int) -> None:
        frame = message_frame(self._sent, due_ns, self._subprotocol)
        talker.in_flight.append(self._sent)
        self._sent += 1
        if talker.sock.send(frame) != len(frame):
            raise RuntimeError("the server stopped reading; the clients cannot send")

    def _receive(self, timeout_s: float) -> list[Talker]:
        """Receive frames within the timeout; return one client for each reply."""
        # select() on the poller: the timeout of poll() has a resolution of 1 ms.
        ready, _, _ = select.select([self._poller], [], [], timeout_s)
        answered: list[Talker] = []
        for fd, _ in self._poller.poll(0) if ready else ():
            talker = self._by_fd[fd]
            chunk = talker.sock.recv(65536)
            if not chunk:
                raise RuntimeError(f"the server closed a connection: {self._faults}")
            stream, at = talker.received + chunk, 0
            while (header := next_frame(stream, at)) and header[2] <= len(stream):
                opcode, start, at = header
                if self._handle(talker, opcode, stream[start:at]):
                    answered.append(talker)
            talker.received = stream[at:]
        return answered

    def _handle(self, talker: Talker, opcode: int, payload: bytes) -> bool:
        """Handle one frame; return True if it answers the client's oldest message."""
        if opcode >= PING:
            if opcode == PING:
                talker.sock.send(client_frame(payload, PONG))
            return False
        if not is_answer(payload, self._subprotocol):
            if is_rejection(payload, self._subprotocol):
                self._faults[payload.decode(errors="replace")] += 1
            return False
        mark = mark_of(payload)
        if mark is None or not talker.in_flight or mark[1] != talker.in_flight[0]:
            self._faults["reply that does not answer the oldest message"] += 1
            return False
        talker.in_flight.popleft()
        self._latencies.add_ns(time.monotonic_ns() - mark[0])
        return True


def main(port: int) -> None:
    """Serve commands."""
    talkers = Talkers(port)
    emit(ready=True)
    serve_commands_blocking(
        {
            "open": talkers.open,
            "closed_loop": talkers.closed_loop,
            "open_loop": talkers.open_loop,
        }
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
