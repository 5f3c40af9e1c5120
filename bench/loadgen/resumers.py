"""A client that comes back to a half-finished answer, as a process: again and again, one after another."""

import base64
import json
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from trunkline.v1 import frame_pb2

from bench.commands import Result, emit
from bench.loadgen.chat_frames import JSON, PROTO
from bench.loadgen.latency import Latencies
from bench.loadgen.reply_frames import read
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
    """One connection, read frame by frame; the time counts from when the handshake is sent."""

    def __init__(self, port: int, target: str, subprotocol: str) -> None:
        self.subprotocol = subprotocol
        self._sock = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began_ns = time.monotonic_ns()
        self._sock.sendall(upgrade_request(f"127.0.0.1:{port}", target, subprotocol))
        self._received = bytearray()

    def frames(self) -> Iterator[bytes]:
        """The payloads of all frames but control frames, as they come."""
        while HEAD_END not in self._received:
            self._read()
        if not self._received.startswith(b"HTTP/1.1 101"):
            raise ConnectionError(f"refused: {bytes(self._received[:300])!r}")
        at = self._received.index(HEAD_END) + len(HEAD_END)
        while True:
            while not (header := next_frame(self._received, at)) or header[2] > len(self._received):
                self._read()
            opcode, start, at = header
            if opcode < PING:
                yield bytes(self._received[start:at])

    def ask_for_pong(self) -> None:
        """What was on its way comes before the answer."""
        if self.subprotocol == PROTO:
            ping = frame_pb2.ClientFrame(ping=frame_pb2.PingFrame(id="p"))
            self._sock.sendall(client_frame(ping.SerializeToString(), BINARY))
        else:
            self._sock.sendall(client_frame(b'{"type":"ping","id":"p"}', TEXT))

    def leave(self) -> None:
        """Goes, without a word: as those do who resume."""
        self._sock.close()

    def _read(self) -> None:
        chunk = self._sock.recv(256 * 1024)
        if not chunk:
            raise ConnectionError("closed by the server")
        self._received += chunk


def last_positions(port: int, target: str) -> str:
    """The `resume` parameter of a client that has all there is, which it learns from a first visit."""
    visit = ResumingConnection(port, target, JSON)
    latest: dict[str, Any] = {}
    for payload in visit.frames():
        frame = json.loads(payload)
        for place in frame.get("positions", []):
            latest[json.dumps(place["address"])] = place
        if frame["type"] == "message":
            latest[json.dumps(frame["address"])] = {
                "address": frame["address"],
                "position": frame["position"],
            }
            break
    visit.leave()
    positions = json.dumps(list(latest.values()), separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(positions).decode().rstrip("=")


def resume(port: int, target: str, subprotocol: str, times: int, expected: str) -> Result:
    """Comes back `times` times; `expected` is the digest of the text so far."""
    latencies, faults = Latencies(), Counter[str]()
    frame_bytes = 0
    resumed = f"{target}&resume={last_positions(port, target)}"
    for _ in range(times):
        visit = ResumingConnection(port, resumed, subprotocol)
        messages = 0
        for payload in visit.frames():
            frame = read(payload, subprotocol)
            if frame.kind == "open":
                messages += 1
                if messages == 1:
                    latencies.add_ns(time.monotonic_ns() - visit.began_ns)
                    frame_bytes = len(payload)
                    faults["another text"] += digest(frame.text) != expected
                    visit.ask_for_pong()
            elif frame.kind == "connected":
                faults["not recovered"] += not _is_recovered(payload, subprotocol)
            elif frame.kind == "pong":
                break
            else:
                faults[f"a frame `{frame.kind}`"] += 1
        faults["not exactly one message"] += messages != 1
        visit.leave()
    wrong = {name: count for name, count in faults.items() if count}
    return {"resumed": times, "latency": latencies.figures(), "frame_bytes": frame_bytes, "wrong": wrong}


def _is_recovered(payload: bytes, subprotocol: str) -> bool:
    if subprotocol == PROTO:
        return frame_pb2.ServerFrame.FromString(payload).connected.recovered
    return b'"recovered":true' in payload


def main(port: int) -> None:
    """Takes orders: `resume`."""
    emit(ready=True)
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        order.pop("do")
        emit(**resume(port, **order))


if __name__ == "__main__":
    main(int(sys.argv[1]))
