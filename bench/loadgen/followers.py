"""Load generator: listeners of streamed replies.

One thread, one poller and one buffer serve all sockets, and frames are parsed only at the end, because the
process shares the cores with the servers it measures. Commands: `open` · `finish` (check everything and
close).
"""

import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from bench.commands import Result, emit, serve_commands_between
from bench.loadgen.connector import Endpoint, open_all, raise_file_limit
from bench.loadgen.reply_summary import ReplySummary
from bench.loadgen.transcript import Transcript
from bench.loadgen.websocket_frames import CLOSE, GOODBYE, client_frame

BUFFER_BYTES = 256 * 1024
QUIET_S = 0.5
DRAINED_WITHIN_S = 60.0


class Follower:
    """Listener and the number of the reply that it must receive."""

    __slots__ = ("reply", "sock", "transcript")

    def __init__(self, sock: socket.socket, reply: int, encoding: str) -> None:
        self.sock = sock
        self.reply = reply
        self.transcript = Transcript(encoding)


class Followers:
    """All listeners of this process."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._poller = select.epoll()
        self._poller.register(sys.stdin.fileno(), select.EPOLLIN)
        self._by_fd: dict[int, Follower] = {}
        self._gone: Counter[str] = Counter()
        self._view = memoryview(bytearray(BUFFER_BYTES))
        self._last_ns = 0

    def serve(self) -> None:
        """Execute commands until end of file on stdin; receive in between."""
        actions: dict[str, Callable[..., Result]] = {"open": self.open, "finish": self.finish}
        serve_commands_between(lambda: self._receive(None), actions)

    def open(self, endpoint: dict[str, Any], encoding: str, count: int, reply: int | None = None) -> Result:
        """Open connections that listen to `reply` or, if that is None, each to the reply of its number."""
        opened = open_all(Endpoint(port=self._port, **endpoint), count, at_a_time=100)
        for number, sock in zip(opened.numbers, opened.sockets, strict=True):
            expected = number if reply is None else reply
            self._by_fd[sock.fileno()] = Follower(sock, expected, encoding)
            self._poller.register(sock.fileno(), select.EPOLLIN)
        return {"opened": len(opened.sockets), "refusals": opened.refusals[:3]}

    def finish(self, start_ns: int, digests: list[str]) -> Result:
        """Wait until all replies have ended or the timeout expires; return the figures and close."""
        deadline = time.monotonic() + DRAINED_WITHIN_S
        waiting = list(self._by_fd.values())
        while waiting and time.monotonic() < deadline:
            while self._received_recently():
                pass
            for follower in waiting:
                follower.transcript.parse()
            waiting = [one for one in waiting if not one.transcript.frames["end"] and one.sock.fileno() >= 0]
        one, many = ReplySummary(start_ns, digests), ReplySummary(start_ns, digests)
        for follower in self._by_fd.values():
            summary = many if follower.reply == len(digests) - 1 else one
            summary.add(follower.transcript, follower.reply)
        found = {"one": one.figures(), "many": many.figures(), "last_ns": self._last_ns}
        gone = dict(self._gone)
        self._close()
        return {**found, "gone": gone}

    def _received_recently(self) -> bool:
        before = self._last_ns
        quiet_from = time.monotonic() + QUIET_S
        while time.monotonic() < quiet_from:
            self._receive(0.05)
        return self._last_ns != before

    def _close(self) -> None:
        """Close all connections with a close frame."""
        goodbye = client_frame(GOODBYE, CLOSE)
        for follower in self._by_fd.values():
            try:
                follower.sock.send(goodbye)
            except OSError:
                self._gone["could not send a close frame"] += 1
            follower.sock.close()
        self._by_fd.clear()
        self._gone.clear()

    def _receive(self, timeout_s: float | None) -> bool:
        """Receive until a command arrives (True) or the timeout expires (False)."""
        stdin, view, by_fd = sys.stdin.fileno(), self._view, self._by_fd
        clock = time.monotonic_ns
        while events := self._poller.poll(timeout_s):
            has_command = False
            for fd, _ in events:
                if fd == stdin:
                    has_command = True
                    continue
                follower = by_fd[fd]
                try:
                    size = follower.sock.recv_into(view)
                except OSError as fault:
                    self._drop(follower, fd, str(fault))
                    continue
                if not size:
                    self._drop(follower, fd, "closed by the server")
                    continue
                self._last_ns = now = clock()
                follower.transcript.take(view[:size], now)
            if timeout_s is not None:
                return False
            if has_command:
                return True
        return False

    def _drop(self, follower: Follower, fd: int, fault: str) -> None:
        """Close a broken socket; its transcript still counts."""
        self._gone[fault] += 1
        self._poller.unregister(fd)
        follower.sock.close()


def main(port: int) -> None:
    """Raise the limit of open files and serve commands."""
    raise_file_limit()
    emit(ready=True)
    Followers(port).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))
