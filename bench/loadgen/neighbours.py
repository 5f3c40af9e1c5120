"""Load generator: clients of a tenant with moderate traffic, two in each conversation.

Commands: `open` · `talk` (send at a rate for some seconds, as an open loop). Latencies count from when a
message was due to its ack, and to its receipt by the other client of the conversation.
"""

import re
import select
import socket
import sys
import time
from collections import Counter
from typing import Any

from bench.commands import Result, emit, serve_commands_blocking
from bench.loadgen.chat_frames import is_rejection, message_frame
from bench.loadgen.chat_text import mark_of
from bench.loadgen.connector import Endpoint, open_all
from bench.loadgen.latency import Latencies
from bench.loadgen.open_loop import OpenLoop
from bench.loadgen.websocket_frames import PING, PONG, client_frame, next_frame

ANSWERS_WITHIN_S = 10.0
MAX_BATCH = 64
ACK = b'{"type":"ack"'
ACKED_ID = re.compile(rb'"id":"(\d+)"')


class Neighbour:
    """Client. Numbers 2n and 2n+1 share a conversation."""

    __slots__ = ("number", "received", "sock")

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.sock = sock
        self.received = b""


class Neighbours:
    """All clients of this process, in the JSON encoding."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._poller = select.epoll()
        self._clients: list[Neighbour] = []
        self._by_fd: dict[int, Neighbour] = {}
        self._subprotocol: str | None = None
        self._sent = 0
        self._acked, self._received = Latencies(), Latencies()
        #: By message number: due time of messages without an ack, and client that has not received it yet.
        self._unacked: dict[int, int] = {}
        self._unreceived: dict[int, int] = {}
        self._faults: Counter[str] = Counter()

    def open(self, endpoint: dict[str, Any], count: int) -> Result:
        """Open connections; `{pair}` in the endpoint's target is replaced by the conversation's number."""
        for number in range(count):
            target = endpoint["target"].replace("{pair}", str(number // 2))
            opened = open_all(Endpoint(port=self._port, **{**endpoint, "target": target}), 1, 1, first=number)
            if opened.refusals:
                return {"opened": number, "refusals": opened.refusals}
            client = Neighbour(number, opened.sockets[0])
            self._clients.append(client)
            self._by_fd[client.sock.fileno()] = client
            self._poller.register(client.sock.fileno(), select.EPOLLIN)
        self._subprotocol = endpoint["subprotocol"]
        return {"opened": count, "refusals": []}

    def talk(self, rate: float, seconds: float) -> Result:
        """Send from clients in turn, at `rate` messages/s in total; return latencies and errors."""
        self._acked, self._received, self._faults = Latencies(), Latencies(), Counter()
        schedule = OpenLoop(rate, seconds, time.monotonic_ns())
        while schedule.taken < schedule.total:
            for number in schedule.take(time.monotonic_ns(), MAX_BATCH):
                self._send_message(self._clients[number % len(self._clients)], schedule.due_ns(number))
            self._receive(schedule.wait_s(time.monotonic_ns()))
        deadline = time.monotonic() + ANSWERS_WITHIN_S
        while (self._unacked or self._unreceived) and time.monotonic() < deadline:
            self._receive(0.05)
        wrong = {"unacked": len(self._unacked), "unheard": len(self._unreceived)}
        self._unacked.clear()
        self._unreceived.clear()
        return {
            "talked": schedule.total,
            "acked": self._acked.figures(),
            "heard": self._received.figures(),
            "wrong": {**wrong, "faults": sum(self._faults.values())},
            "faults": dict(self._faults.most_common(5)),
        }

    def _send_message(self, client: Neighbour, due_ns: int) -> None:
        frame = message_frame(self._sent, due_ns, self._subprotocol)
        self._unacked[self._sent] = due_ns
        self._unreceived[self._sent] = client.number ^ 1
        self._sent += 1
        if client.sock.send(frame) != len(frame):
            raise RuntimeError("the server stopped reading; the clients cannot send")

    def _receive(self, timeout_s: float) -> None:
        """Receive the frames that arrive within the timeout."""
        # select() on the poller: the timeout of poll() has a resolution of 1 ms.
        ready, _, _ = select.select([self._poller], [], [], timeout_s)
        for fd, _ in self._poller.poll(0) if ready else ():
            client = self._by_fd[fd]
            chunk = client.sock.recv(65536)
            now_ns = time.monotonic_ns()
            if not chunk:
                raise RuntimeError(f"the server closed a connection: {self._faults}")
            stream, at = client.received + chunk, 0
            while (header := next_frame(stream, at)) and header[2] <= len(stream):
                opcode, start, at = header
                self._handle(client, opcode, stream[start:at], now_ns)
            client.received = stream[at:]

    def _handle(self, client: Neighbour, opcode: int, payload: bytes, now_ns: int) -> None:
        if opcode >= PING:
            if opcode == PING:
                client.sock.send(client_frame(payload, PONG))
        elif payload.startswith(ACK):
            found = ACKED_ID.search(payload)
            due_ns = self._unacked.pop(int(found[1]), None) if found else None
            if due_ns is None:
                self._faults["ack without a pending message"] += 1
            else:
                self._acked.add_ns(now_ns - due_ns)
        elif mark := mark_of(payload):
            due_ns, number = mark
            if self._unreceived.pop(number, None) != client.number:
                self._faults["message received twice or by the wrong client"] += 1
            self._received.add_ns(now_ns - due_ns)
        elif is_rejection(payload, self._subprotocol):
            self._faults[payload.decode(errors="replace")] += 1


def main(port: int) -> None:
    """Serve commands."""
    neighbours = Neighbours(port)
    emit(ready=True)
    serve_commands_blocking({"open": neighbours.open, "talk": neighbours.talk})


if __name__ == "__main__":
    main(int(sys.argv[1]))
