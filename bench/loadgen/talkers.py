"""Chat clients, as a process: each says something and waits for the agent's answer.

Orders: `open` · `closed_loop` (one message of each client under way) · `open_loop` (at a rate, whether or
not answers have come; latencies count from when a message was due).
"""

import json
import select
import socket
import sys
import time
from collections import Counter, deque
from typing import Any

from bench.commands import Result, emit
from bench.loadgen.chat_frames import is_answer, is_rejection, message_frame
from bench.loadgen.chat_text import mark_of
from bench.loadgen.connector import Endpoint, open_all
from bench.loadgen.latency import Latencies
from bench.loadgen.open_loop import OpenLoop
from bench.loadgen.websocket_frames import PING, PONG, client_frame, next_frame

ANSWERS_WITHIN_S = 10.0
MOST_SENT_AT_ONCE = 64


class Talker:
    """One client; `under_way` are the numbers of messages that have no answer yet, in order."""

    __slots__ = ("received", "sock", "under_way")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""
        self.under_way: deque[int] = deque()


class Talkers:
    """All clients of this process."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._poller = select.epoll()
        self._by_fd: dict[int, Talker] = {}
        self._talkers: list[Talker] = []
        self._subprotocol: str | None = None
        self._said = 0
        self._latencies = Latencies()
        self._faults: Counter[str] = Counter()

    def open(self, door: dict[str, Any], count: int) -> Result:
        """Opens connections in addition to those there are."""
        opened = open_all(Endpoint(port=self._port, **door), count, at_a_time=50, first=len(self._talkers))
        self._subprotocol = door.get("subprotocol")
        for sock in opened.sockets:
            talker = Talker(sock)
            self._talkers.append(talker)
            self._by_fd[sock.fileno()] = talker
            self._poller.register(sock.fileno(), select.EPOLLIN)
        return {"opened": len(opened.sockets), "refusals": opened.refusals[:3]}

    def closed_loop(self, seconds: float) -> Result:
        """Every client says the next thing once the last one is answered."""
        began = self._begin()
        end = began + int(seconds * 1e9)
        for talker in self._talkers:
            self._say(talker, time.monotonic_ns())
        answered = 0
        while (now := time.monotonic_ns()) < end:
            for talker in self._receive((end - now) / 1e9):
                answered += 1
                self._say(talker, time.monotonic_ns())
        return self._ended(answered, (now - began) / 1e9)

    def open_loop(self, rate: float, seconds: float) -> Result:
        """Clients say something in turn, at `rate` messages/s together."""
        pace = OpenLoop(rate, seconds, self._begin())
        answered = 0
        while pace.given < pace.total:
            for number in pace.take(time.monotonic_ns(), MOST_SENT_AT_ONCE):
                self._say(self._talkers[number % len(self._talkers)], pace.due_ns(number))
            answered += len(self._receive(pace.wait_s(time.monotonic_ns())))
        return self._ended(answered, seconds)

    def _begin(self) -> int:
        self._latencies, self._faults = Latencies(), Counter()
        return time.monotonic_ns()

    def _ended(self, answered: int, elapsed_s: float) -> Result:
        """Waits for the answers that are still to come."""
        deadline = time.monotonic() + ANSWERS_WITHIN_S
        while any(talker.under_way for talker in self._talkers) and time.monotonic() < deadline:
            self._receive(0.05)
        unanswered = sum(len(talker.under_way) for talker in self._talkers)
        for talker in self._talkers:
            talker.under_way.clear()
        return {
            "answered": answered,
            "elapsed_s": elapsed_s,
            "unanswered": unanswered,
            "faults": dict(self._faults.most_common(5)),
            "latency": self._latencies.figures(),
        }

    def _say(self, talker: Talker, due_ns: int) -> None:
        frame = message_frame(self._said, due_ns, self._subprotocol)
        talker.under_way.append(self._said)
        self._said += 1
        if talker.sock.send(frame) != len(frame):
            raise RuntimeError("the server reads no further; the clients cannot say more")

    def _receive(self, timeout_s: float) -> list[Talker]:
        """Receives what there is within a time; returns a client for each answer."""
        # select() on the poller, as its own timeout is in whole milliseconds.
        ready, _, _ = select.select([self._poller], [], [], timeout_s)
        answered: list[Talker] = []
        for fd, _ in self._poller.poll(0) if ready else ():
            talker = self._by_fd[fd]
            chunk = talker.sock.recv(65536)
            if not chunk:
                raise RuntimeError(f"the server closed a connection; {self._faults}")
            stream, at = talker.received + chunk, 0
            while (header := next_frame(stream, at)) and header[2] <= len(stream):
                opcode, start, at = header
                if self._take(talker, opcode, stream[start:at]):
                    answered.append(talker)
            talker.received = stream[at:]
        return answered

    def _take(self, talker: Talker, opcode: int, payload: bytes) -> bool:
        """Deals with one frame; True where it is the answer to the client's oldest message."""
        if opcode >= PING:
            if opcode == PING:
                talker.sock.send(client_frame(payload, PONG))
            return False
        if not is_answer(payload, self._subprotocol):
            if is_rejection(payload, self._subprotocol):
                self._faults[payload.decode(errors="replace")] += 1
            return False
        mark = mark_of(payload)
        if mark is None or not talker.under_way or mark[1] != talker.under_way[0]:
            self._faults["an answer to another message than the oldest"] += 1
            return False
        talker.under_way.popleft()
        self._latencies.add_ns(time.monotonic_ns() - mark[0])
        return True


def main(port: int) -> None:
    """Serves until standard input ends."""
    talkers = Talkers(port)
    emit(ready=True)
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        emit(**getattr(talkers, order.pop("do"))(**order))


if __name__ == "__main__":
    main(int(sys.argv[1]))
