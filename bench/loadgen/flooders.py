"""Load generator: a tenant that sends at a fixed rate regardless of its quota, even when it is rejected.

Commands: `by_websocket` (clients in turn) · `by_unary` (`Broadcast`, a bounded number of calls at a time) ·
`by_many` (one `BroadcastMany`). Each runs for `seconds` and counts accepted and rejected messages after the
first `lead_s`, when the initially full buckets are empty.

The process shares the machine with the servers that it floods, while real clients would not. It therefore
runs with the lowest priority and uses the CPU time that the others leave.
"""

import asyncio
import functools
import os
import socket
import struct
import sys
import time
from collections import Counter
from typing import Any

import grpc
import uvloop
from trunkline.v1.broadcast_service_pb2_grpc import BroadcastServiceStub

from bench.commands import Result, emit, serve_commands
from bench.loadgen.chat_frames import is_rejection, message_frame
from bench.loadgen.connector import Endpoint, open_all
from bench.loadgen.open_loop import OpenLoop, due_items
from bench.loadgen.publisher import RequestFactory, Stream
from bench.loadgen.websocket_frames import next_frame

LOWEST_PRIORITY = 19
MAX_BATCH = 4096
PERSONS = 100
#: SO_LINGER with timeout 0: closing discards unsent data and sends RST.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
ACK = b'{"type":"ack"'


class FloodRun:
    """Counters and schedule of one run, which starts on construction."""

    def __init__(self, rate: float, seconds: float, lead_s: float) -> None:
        self._start_ns = time.monotonic_ns()
        self._counted_from_ns = self._start_ns + int(lead_s * 1e9)
        self._counted_s = seconds - lead_s
        self.end_ns = self._start_ns + int(seconds * 1e9)
        self.schedule = OpenLoop(rate, seconds, self._start_ns)
        self._counts: Counter[str] = Counter()

    def count(self, what: str, times: int = 1) -> None:
        """Count an event: `offered`, `sent`, `through`, or an error code."""
        if self._counted_from_ns <= time.monotonic_ns() < self.end_ns:
            self._counts[what] += times

    def result(self) -> Result:
        """Return rates per second; `otherwise` counts unexpected events."""
        counts = self._counts
        known = ("offered", "sent", "through", "RATE_LIMITED")
        return {
            "offered_per_s": counts["offered"] / self._counted_s,
            "sent_per_s": counts["sent"] / self._counted_s,
            "through_per_s": counts["through"] / self._counted_s,
            "limited_per_s": counts["RATE_LIMITED"] / self._counted_s,
            "otherwise": {what: times for what, times in counts.items() if what not in known},
        }


class Client(asyncio.Protocol):
    """WebSocket client that sends unless its socket is full."""

    def __init__(self, flood: FloodRun, subprotocol: str) -> None:
        self._flood = flood
        self._subprotocol = subprotocol
        self._received = b""
        self._is_full = False
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = transport
        self._transport.set_write_buffer_limits(high=0)

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._is_full = True

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._is_full = False

    def offer(self, number: int) -> None:
        """Send a message unless the socket is full."""
        if not self._is_full and not self._transport.is_closing():
            self._transport.write(message_frame(number, time.monotonic_ns(), self._subprotocol))
            self._flood.count("sent")

    def data_received(self, data: bytes) -> None:
        """Count acks and rejections."""
        stream, at = self._received + data, 0
        while (header := next_frame(stream, at)) and header[2] <= len(stream):
            _, start, at = header
            payload = stream[start:at]
            if payload.startswith(ACK):
                self._flood.count("through")
            elif b'"RATE_LIMITED"' in payload:
                self._flood.count("RATE_LIMITED")
            elif is_rejection(payload, self._subprotocol):
                self._flood.count(payload.decode(errors="replace"))
        self._received = stream[at:]

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._flood.count("closed")

    def leave(self) -> None:
        """Reset the connection and discard unsent data."""
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._transport.abort()


class Flooders:
    """Clients and backends of the flooding tenant."""

    def __init__(self, edge_port: int, stub: BroadcastServiceStub) -> None:
        self._edge_port = edge_port
        self._stub = stub
        self._sent = 0

    async def by_websocket(
        self, endpoint: dict[str, Any], clients: int, rate: float, seconds: float, lead_s: float
    ) -> Result:
        """Send by WebSocket clients in turn; a client with a full socket skips its turn."""
        opened = open_all(Endpoint(port=self._edge_port, **endpoint), clients, at_a_time=50)
        if opened.refusals:
            raise RuntimeError(opened.refusals[0])
        flood, loop = FloodRun(rate, seconds, lead_s), asyncio.get_running_loop()
        make = functools.partial(Client, flood, endpoint["subprotocol"])
        sending = [(await loop.create_connection(make, sock=sock))[1] for sock in opened.sockets]
        async for due in due_items(flood.schedule, flood.end_ns, MAX_BATCH):
            flood.count("offered", len(due))
            for _ in due:
                sending[self._sent % clients].offer(self._sent)
                self._sent += 1
        result = flood.result()
        for client in sending:
            client.leave()
        return result

    async def by_unary(
        self, tenant: str, at_a_time: int, rate: float, seconds: float, lead_s: float
    ) -> Result:
        """Send by unary calls; messages that are due while `at_a_time` calls are in flight are skipped."""
        requests, flood = (
            RequestFactory(None, PERSONS, keys=False, tenant=tenant),
            FloodRun(rate, seconds, lead_s),
        )
        in_flight: set[asyncio.Task[None]] = set()

        async def call(number: int) -> None:
            flood.count("sent")
            try:
                await self._stub.Broadcast(requests.one(number, time.monotonic_ns()))
                flood.count("through")
            except grpc.aio.AioRpcError as error:
                limited = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                flood.count("RATE_LIMITED" if limited else f"{error.code().name}: {error.details()}")

        async for due in due_items(flood.schedule, flood.end_ns, MAX_BATCH):
            flood.count("offered", len(due))
            for number in due[: max(0, at_a_time - len(in_flight))]:
                task = asyncio.create_task(call(number))
                in_flight.add(task)
                task.add_done_callback(in_flight.discard)
            # Let the new tasks start their calls.
            await asyncio.sleep(0)
        result = flood.result()
        for task in in_flight:
            task.cancel()
        await asyncio.gather(*in_flight, return_exceptions=True)
        return result

    async def by_many(self, tenant: str, rate: float, seconds: float, lead_s: float) -> Result:
        """Send by one stream: each write carries everything due, and waits for flow control."""
        requests, flood = (
            RequestFactory(None, PERSONS, keys=False, tenant=tenant),
            FloodRun(rate, seconds, lead_s),
        )
        call: Stream = self._stub.BroadcastMany()

        async def read() -> None:
            async for response in call:
                for result in response.results:
                    flood.count(result.error.code if result.HasField("error") else "through")

        async def write() -> None:
            async for due in due_items(flood.schedule, flood.end_ns, MAX_BATCH):
                flood.count("offered", len(due))
                await call.write(requests.batch((number, flood.schedule.due_ns(number)) for number in due))
                flood.count("sent", len(due))

        reading, writing = asyncio.create_task(read()), asyncio.create_task(write())
        await asyncio.wait([reading, writing], timeout=seconds)
        await asyncio.sleep(max(0.0, (flood.end_ns - time.monotonic_ns()) / 1e9))
        result = flood.result()
        writing.cancel()
        call.cancel()
        await asyncio.gather(reading, writing, return_exceptions=True)
        return result


async def main(edge_port: int, router_port: int) -> None:
    """Serve commands."""
    os.nice(LOWEST_PRIORITY)
    async with grpc.aio.insecure_channel(
        f"127.0.0.1:{router_port}", [("grpc.enable_http_proxy", 0)]
    ) as channel:
        await channel.channel_ready()
        flooders = Flooders(edge_port, BroadcastServiceStub(channel))
        emit(ready=True)
        names = ("by_websocket", "by_unary", "by_many")
        await serve_commands({name: getattr(flooders, name) for name in names})


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
