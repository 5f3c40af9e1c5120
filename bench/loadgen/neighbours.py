"""A tenant's clients that say a little, as a process: two to a conversation, and each hears the other.

Orders: `open` · `talk` (for some seconds, at a rate, whether or not earlier messages were acked). Latencies
count from when a message was due, to its ack and to when the other client of its conversation had it.
"""

import json
import re
import select
import socket
import sys
import time
from collections import Counter
from typing import Any

from bench.commands import Result, emit
from bench.loadgen.chat_frames import is_rejection, message_frame
from bench.loadgen.chat_text import mark_of
from bench.loadgen.connector import Endpoint, open_all
from bench.loadgen.latency import Latencies
from bench.loadgen.open_loop import OpenLoop
from bench.loadgen.websocket_frames import PING, PONG, client_frame, next_frame

ANSWERS_WITHIN_S = 10.0
MOST_SENT_AT_ONCE = 64
ACK = b'{"type":"ack"'
ACKED_ID = re.compile(rb'"id":"(\d+)"')


class Neighbour:
    """One client; `number` is its own, and those of its conversation are one even and the next odd one."""

    __slots__ = ("number", "received", "sock")

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.sock = sock
        self.received = b""


class Neighbours:
    """All clients of this process; they speak the contract's JSON."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._poller = select.epoll()
        self._clients: list[Neighbour] = []
        self._by_fd: dict[int, Neighbour] = {}
        self._subprotocol: str | None = None
        self._said = 0
        self._acked, self._heard = Latencies(), Latencies()
        #: When what has no ack yet was due, and who still has to hear what.
        self._unacked: dict[int, int] = {}
        self._unheard: dict[int, int] = {}
        self._faults: Counter[str] = Counter()

    def open(self, door: dict[str, Any], count: int) -> Result:
        """Opens connections; `{pair}` in the door's target is the number of the conversation."""
        for number in range(count):
            target = door["target"].replace("{pair}", str(number // 2))
            opened = open_all(Endpoint(port=self._port, **{**door, "target": target}), 1, 1, first=number)
            if opened.refusals:
                return {"opened": number, "refusals": opened.refusals}
            client = Neighbour(number, opened.sockets[0])
            self._clients.append(client)
            self._by_fd[client.sock.fileno()] = client
            self._poller.register(client.sock.fileno(), select.EPOLLIN)
        self._subprotocol = door["subprotocol"]
        return {"opened": count, "refusals": []}

    def talk(self, rate: float, seconds: float) -> Result:
        """Clients say something in turn, at `rate` messages/s together; tells what became of it."""
        self._acked, self._heard, self._faults = Latencies(), Latencies(), Counter()
        pace = OpenLoop(rate, seconds, time.monotonic_ns())
        while pace.given < pace.total:
            for number in pace.take(time.monotonic_ns(), MOST_SENT_AT_ONCE):
                self._say(self._clients[number % len(self._clients)], pace.due_ns(number))
            self._receive(pace.wait_s(time.monotonic_ns()))
        deadline = time.monotonic() + ANSWERS_WITHIN_S
        while (self._unacked or self._unheard) and time.monotonic() < deadline:
            self._receive(0.05)
        wrong = {"unacked": len(self._unacked), "unheard": len(self._unheard)}
        self._unacked.clear()
        self._unheard.clear()
        return {
            "talked": pace.total,
            "acked": self._acked.figures(),
            "heard": self._heard.figures(),
            "wrong": {**wrong, "faults": sum(self._faults.values())},
            "faults": dict(self._faults.most_common(5)),
        }

    def _say(self, client: Neighbour, due_ns: int) -> None:
        frame = message_frame(self._said, due_ns, self._subprotocol)
        self._unacked[self._said] = due_ns
        self._unheard[self._said] = client.number ^ 1
        self._said += 1
        if client.sock.send(frame) != len(frame):
            raise RuntimeError("the server reads no further; the clients cannot say more")

    def _receive(self, timeout_s: float) -> None:
        """Receives what there is within a time."""
        # select() on the poller, as its own timeout is in whole milliseconds.
        ready, _, _ = select.select([self._poller], [], [], timeout_s)
        for fd, _ in self._poller.poll(0) if ready else ():
            client = self._by_fd[fd]
            chunk = client.sock.recv(65536)
            now_ns = time.monotonic_ns()
            if not chunk:
                raise RuntimeError(f"the server closed a connection; {self._faults}")
            stream, at = client.received + chunk, 0
            while (header := next_frame(stream, at)) and header[2] <= len(stream):
                opcode, start, at = header
                self._take(client, opcode, stream[start:at], now_ns)
            client.received = stream[at:]

    def _take(self, client: Neighbour, opcode: int, payload: bytes, now_ns: int) -> None:
        if opcode >= PING:
            if opcode == PING:
                client.sock.send(client_frame(payload, PONG))
        elif payload.startswith(ACK):
            found = ACKED_ID.search(payload)
            due_ns = self._unacked.pop(int(found[1]), None) if found else None
            if due_ns is None:
                self._faults["an ack of nothing that waited for one"] += 1
            else:
                self._acked.add_ns(now_ns - due_ns)
        elif mark := mark_of(payload):
            due_ns, number = mark
            if self._unheard.pop(number, None) != client.number:
                self._faults["a message heard twice, or by somebody else"] += 1
            self._heard.add_ns(now_ns - due_ns)
        elif is_rejection(payload, self._subprotocol):
            self._faults[payload.decode(errors="replace")] += 1


def main(port: int) -> None:
    """Serves until standard input ends."""
    neighbours = Neighbours(port)
    emit(ready=True)
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        emit(**getattr(neighbours, order.pop("do"))(**order))


if __name__ == "__main__":
    main(int(sys.argv[1]))
