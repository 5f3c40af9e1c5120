"""Load generator: a client that repeatedly resumes a conversation with an unfinished reply."""

import base64
import functools
import json
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from trunkline.v1 import frame_pb2

from bench.commands import Result, emit, serve_commands_blocking
from bench.loadgen.chat_frames import JSON, PROTO
from bench.loadgen.latency import Latencies
from bench.loadgen.reply_frames import decode
from bench.loadgen.reply_text import digest
from bench.loadgen.websocket_frames import (
    BINARY,
    HEAD_END,
    PING,
    TEXT,
    client_frame,
    next_frame,
    upgrade_request,
)

TIMEOUT_S = 10.0


class ResumingConnection:
    """Blocking connection that is read frame by frame; `began_ns` is when the handshake was sent."""

    def __init__(self, port: int, target: str, subprotocol: str) -> None:
        self.subprotocol = subprotocol
        self._sock = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began_ns = time.monotonic_ns()
        self._sock.sendall(upgrade_request(f"127.0.0.1:{port}", target, subprotocol))
        self._received = bytearray()

    def frames(self) -> Iterator[bytes]:
        """Yield the payloads of all frames except control frames."""
        while HEAD_END not in self._received:
            self._read()
        if not self._received.startswith(b"HTTP/1.1 101"):
            raise ConnectionError(f"rejected: {bytes(self._received[:300])!r}")
        at = self._received.index(HEAD_END) + len(HEAD_END)
        while True:
            while not (header := next_frame(self._received, at)) or header[2] > len(self._received):
                self._read()
            opcode, start, at = header
            if opcode < PING:
                yield bytes(self._received[start:at])

    def send_ping(self) -> None:
        """Send a ping; the pong follows all frames already in transit."""
        if self.subprotocol == PROTO:
            ping = frame_pb2.ClientFrame(ping=frame_pb2.PingFrame(id="p"))
            self._sock.sendall(client_frame(ping.SerializeToString(), BINARY))
        else:
            self._sock.sendall(client_frame(b'{"type":"ping","id":"p"}', TEXT))

    def close(self) -> None:
        """Close the socket without a close frame."""
        self._sock.close()

    def _read(self) -> None:
        chunk = self._sock.recv(256 * 1024)
        if not chunk:
            raise ConnectionError("closed by the server")
        self._received += chunk


def last_positions(port: int, target: str) -> str:
    """Return the `resume` parameter of an up-to-date client, learned from a first connection."""
    connection = ResumingConnection(port, target, JSON)
    latest: dict[str, Any] = {}
    for payload in connection.frames():
        frame = json.loads(payload)
        for entry in frame.get("positions", []):
            latest[json.dumps(entry["address"])] = entry
        if frame["type"] == "message":
            latest[json.dumps(frame["address"])] = {
                "address": frame["address"],
                "position": frame["position"],
            }
            break
    connection.close()
    positions = json.dumps(list(latest.values()), separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(positions).decode().rstrip("=")


def resume(port: int, target: str, subprotocol: str, times: int, expected: str) -> Result:
    """Resume `times` times; `expected` is the digest of the text so far."""
    latencies, faults = Latencies(), Counter[str]()
    frame_bytes = 0
    resumed = f"{target}&resume={last_positions(port, target)}"
    for _ in range(times):
        connection = ResumingConnection(port, resumed, subprotocol)
        messages = 0
        for payload in connection.frames():
            frame = decode(payload, subprotocol)
            if frame.kind == "open":
                messages += 1
                if messages == 1:
                    latencies.add_ns(time.monotonic_ns() - connection.began_ns)
                    frame_bytes = len(payload)
                    faults["wrong text"] += digest(frame.text) != expected
                    connection.send_ping()
            elif frame.kind == "connected":
                faults["not recovered"] += not _is_recovered(payload, subprotocol)
            elif frame.kind == "pong":
                break
            else:
                faults[f"unexpected frame `{frame.kind}`"] += 1
        faults["not exactly one message"] += messages != 1
        connection.close()
    wrong = {name: count for name, count in faults.items() if count}
    return {"resumed": times, "latency": latencies.figures(), "frame_bytes": frame_bytes, "wrong": wrong}


def _is_recovered(payload: bytes, subprotocol: str) -> bool:
    if subprotocol == PROTO:
        return frame_pb2.ServerFrame.FromString(payload).connected.recovered
    return b'"recovered":true' in payload


def main(port: int) -> None:
    """Serve the command `resume`."""
    emit(ready=True)
    serve_commands_blocking({"resume": functools.partial(resume, port)})


if __name__ == "__main__":
    main(int(sys.argv[1]))
