"""Load generator: callers of chat completions, as OpenAI's SDKs call them, and a native socket beside them.

Commands: `call_in_turn` (a native message and a call, alternately, one at a time) · `open` (many streams) ·
`finish` (check everything and close).
"""

import json
import select
import socket
import sys
import time
from collections import Counter
from typing import Any

from bench.commands import Result, emit, serve_commands_blocking
from bench.loadgen.answerer import answer_to
from bench.loadgen.attach_stream import AGENT
from bench.loadgen.chat_frames import JSON
from bench.loadgen.connector import Endpoint, open_all, raise_file_limit
from bench.loadgen.latency import Latencies
from bench.loadgen.reply_text import digest, marks_of
from bench.loadgen.websocket_frames import TEXT, client_frame

PATIENCE_S = 60.0
BUFFER_BYTES = 256 * 1024
LAST_CHUNK = b"0\r\n\r\n"


def call(port: int, text: str) -> bytes:
    """Return the request of a streamed chat completion."""
    body = json.dumps(
        {"model": AGENT, "messages": [{"role": "user", "content": text}], "stream": True}
    ).encode()
    head = (
        f"POST /openai/demo/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        "Authorization: Bearer sk-bench\r\nContent-Type: application/json\r\n"
        f"x-stainless-retry-count: 0\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class StreamedCall:
    """A call and what it has received: the bytes, and the end and time of each piece."""

    __slots__ = ("number", "pieces", "received", "sock")

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.sock = sock
        self.received = bytearray()
        self.pieces: list[tuple[int, int]] = []


class Callers:
    """All calls of this process."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._calls: dict[int, StreamedCall] = {}
        self._gone: Counter[str] = Counter()
        self._turns = 0
        self._poller = select.epoll()

    def call_in_turn(self, calls: int) -> Result:
        """Measure the time to the first token, from the request, by both protocols alternately."""
        target = f"/v1/connect?tenant=demo&agent={AGENT}&platform=web&conversation=person:turns&user=turns"
        opened = open_all(
            Endpoint(port=self._port, target=target, subprotocol=JSON, waits_for_frame=True), 1, 1
        )
        native = opened.sockets[0]
        native.setblocking(True)
        native.settimeout(PATIENCE_S)
        by_socket, by_call, connecting = Latencies(), Latencies(), Latencies()
        for number in range(self._turns, self._turns + calls):
            text = f"native-{number}-"
            message = {"type": "message", "id": text, "parts": [{"type": "text", "text": text}]}
            started_ns = time.monotonic_ns()
            native.sendall(client_frame(json.dumps(message).encode(), TEXT))
            _await(native, answer_to(text).encode())
            by_socket.add_ns(time.monotonic_ns() - started_ns)
            text = f"call-{number}-"
            request = call(self._port, text)
            started_ns = time.monotonic_ns()
            with socket.create_connection(("127.0.0.1", self._port), PATIENCE_S) as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connecting.add_ns(time.monotonic_ns() - started_ns)
                sock.sendall(request)
                _await(sock, answer_to(text).encode())
                by_call.add_ns(time.monotonic_ns() - started_ns)
                while sock.recv(65536):
                    pass
        native.close()
        self._turns += calls
        return {"native": by_socket.figures(), "call": by_call.figures(), "connect": connecting.figures()}

    def open(self, count: int) -> Result:
        """Make `count` calls, whose texts are their numbers; all are answered later."""
        for number in range(count):
            sock = socket.create_connection(("127.0.0.1", self._port), PATIENCE_S)
            sock.sendall(call(self._port, str(number)))
            sock.setblocking(False)
            self._calls[sock.fileno()] = StreamedCall(number, sock)
            self._poller.register(sock.fileno(), select.EPOLLIN)
        return {"opened": count}

    def finish(self, within_s: float) -> Result:
        """Receive until the server has ended all streams; `check` follows."""
        view = memoryview(bytearray(BUFFER_BYTES))
        self._gone.clear()
        waiting, deadline = set(self._calls), time.monotonic() + within_s
        while waiting and time.monotonic() < deadline:
            for fd, _ in self._poller.poll(0.5):
                one = self._calls[fd]
                try:
                    size = one.sock.recv_into(view)
                except OSError as fault:
                    self._gone[str(fault)] += 1
                    size = 0
                if size:
                    one.received += view[:size]
                    one.pieces.append((len(one.received), time.monotonic_ns()))
                    continue
                self._poller.unregister(fd)
                waiting.discard(fd)
        return {"ended": len(self._calls) - len(waiting)}

    def check(self, digests: dict[str, str], start_ns: int) -> Result:
        """Compare what was received with what was sent, and close."""
        wrong = Counter(not_ended=0, wrong_texts=0, refused=0)
        latency, deltas, chunks, last_ns = Latencies(), 0, 0, 0
        for one in self._calls.values():
            events = events_in(bytes(one.received))
            text = "".join([event for _, event in events])
            wrong["refused"] += not one.received.startswith(b"HTTP/1.1 200")
            wrong["not_ended"] += b"data: [DONE]\n\n" not in one.received or not one.received.endswith(
                LAST_CHUNK
            )
            if digest(text) != digests.get(str(one.number)):
                wrong["wrong_texts"] += 1
                continue
            pieces = iter(one.pieces)
            end, read_ns = next(pieces)
            for position, content in events:
                while end < position:
                    end, read_ns = next(pieces)
                chunks += bool(content)
                for sent_us, _ in marks_of(content):
                    deltas += 1
                    latency.add_ns(read_ns - start_ns - sent_us * 1000)
                    last_ns = max(last_ns, read_ns)
        for one in self._calls.values():
            one.sock.close()
        self._calls.clear()
        found = {"deltas": deltas, "chunks": chunks, "last_ns": last_ns, "latency": latency.figures()}
        return {"checked": True, **found, "wrong": dict(wrong), "gone": dict(self._gone)}


def _await(sock: socket.socket, wanted: bytes) -> None:
    """Receive until these bytes have come."""
    received = b""
    while wanted not in received:
        data = sock.recv(65536)
        if not data:
            raise RuntimeError(f"the server closed the connection: {received[-500:]!r}")
        received += data


def events_in(response: bytes) -> list[tuple[int, str]]:
    """Return the end of each chunk of the body in the response, and the content of its event."""
    at = response.find(b"\r\n\r\n") + 4
    found = []
    while 0 < at < len(response):
        line = response.find(b"\r\n", at)
        size = int(response[at:line], 16)
        body = response[line + 2 : line + 2 + size]
        at = line + 2 + size + 2
        texts = []
        for event in body.split(b"\n\n"):
            if event.startswith(b"data: {"):
                choices: list[Any] = json.loads(event[6:]).get("choices", [])
                texts += [choice["delta"].get("content") or "" for choice in choices]
        found.append((at, "".join(texts)))
    return found


def main(port: int) -> None:
    """Raise the limit of open files and serve commands."""
    raise_file_limit()
    callers = Callers(port)
    emit(ready=True)
    serve_commands_blocking(
        {
            "call_in_turn": callers.call_in_turn,
            "open": callers.open,
            "finish": callers.finish,
            "check": callers.check,
        }
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
