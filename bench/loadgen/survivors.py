"""Load generator: clients that send one message each at the same moment and wait for its ack, come what may.

Commands: `open` · `send_all` (latencies count from the moment given, or else from when the frames were sent).
"""

import select
import sys
import time
from typing import Any

from bench.commands import Result, emit, serve_commands_blocking
from bench.loadgen.chat_frames import is_rejection, message_frame
from bench.loadgen.connector import Endpoint, open_all, raise_file_limit
from bench.loadgen.latency import Latencies
from bench.loadgen.websocket_frames import PING, PONG, client_frame, next_frame


class Survivors:
    """All clients of this process, each with one message under way at most."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._poller = select.epoll()
        self._sockets: dict[int, Any] = {}
        self._received: dict[int, bytes] = {}
        self._sent = 0
        self._subprotocol = ""
        self._rejections: list[str] = []

    def open(self, endpoint: dict[str, Any], count: int) -> Result:
        """Open further connections, which stay open."""
        raise_file_limit()
        first = len(self._sockets)
        opened = open_all(Endpoint(port=self._port, **endpoint), count, at_a_time=50, first=first)
        self._subprotocol = endpoint["subprotocol"]
        for sock in opened.sockets:
            self._sockets[sock.fileno()] = sock
            self._received[sock.fileno()] = b""
            self._poller.register(sock.fileno(), select.EPOLLIN)
        return {"opened": len(opened.sockets), "refusals": opened.refusals[:3]}

    def send_all(self, patience_s: float, since_ns: int = 0) -> Result:
        """Send a message from each client; return the latencies of the acks, and how many are missing."""
        began = since_ns or time.monotonic_ns()
        self._rejections = []
        waiting: dict[int, bytes] = {}
        for fd, sock in self._sockets.items():
            waiting[fd] = b'"id":"%d"' % self._sent
            sock.sendall(message_frame(self._sent, began, self._subprotocol))
            self._sent += 1
        latencies = Latencies()
        deadline = time.monotonic() + patience_s
        while waiting and (left_s := deadline - time.monotonic()) > 0:
            for fd, _ in self._poller.poll(left_s):
                if fd in waiting and self._is_acked(fd, waiting[fd]):
                    latencies.add_ns(time.monotonic_ns() - began)
                    del waiting[fd]
        return {
            "sent": len(self._sockets),
            "unacked": len(waiting),
            "rejections": self._rejections[:3],
            "latency": latencies.figures(),
        }

    def _is_acked(self, fd: int, number: bytes) -> bool:
        """Read what has arrived; return whether the ack is among it."""
        chunk = self._sockets[fd].recv(65536)
        if not chunk:
            raise RuntimeError(f"the edge closed a connection: {self._rejections}")
        stream, at, is_acked = self._received[fd] + chunk, 0, False
        while (header := next_frame(stream, at)) and header[2] <= len(stream):
            opcode, start, at = header
            payload = stream[start:at]
            if opcode == PING:
                self._sockets[fd].send(client_frame(payload, PONG))
            elif payload.startswith(b'{"type":"ack"') and number in payload:
                is_acked = True
            elif is_rejection(payload, self._subprotocol):
                self._rejections.append(payload.decode(errors="replace"))
        self._received[fd] = stream[at:]
        return is_acked


def main(port: int) -> None:
    """Serve commands."""
    survivors = Survivors(port)
    emit(ready=True)
    serve_commands_blocking({"open": survivors.open, "send_all": survivors.send_all})


if __name__ == "__main__":
    main(int(sys.argv[1]))
