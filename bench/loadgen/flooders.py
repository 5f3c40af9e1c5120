"""A tenant that offers a rate, whatever it may send, as a process. It goes on being refused.

Orders: `by_websocket` (clients in turn) · `by_unary` (`Broadcast`, some calls at a time) · `by_many` (one
`BroadcastMany`). Each runs for `seconds`, and counts what came through and what was refused after the first
`lead_s`, when the buckets that were full at the start are empty.

It shares the machine with what it floods, where a tenant's clients would be elsewhere: it has the lowest
priority, and takes what the others leave.
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
MOST_AT_ONCE = 4096
PERSONS = 100
#: Whoever is gone at once leaves nothing behind that is still to be sent.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
ACK = b'{"type":"ack"'


class FloodRun:
    """One run that starts now."""

    def __init__(self, rate: float, seconds: float, lead_s: float) -> None:
        self._start_ns = time.monotonic_ns()
        self._counted_from_ns = self._start_ns + int(lead_s * 1e9)
        self._counted_s = seconds - lead_s
        self.end_ns = self._start_ns + int(seconds * 1e9)
        self.pace = OpenLoop(rate, seconds, self._start_ns)
        self._counts: Counter[str] = Counter()

    def count(self, what: str, times: int = 1) -> None:
        """Something happened: `offered`, `sent`, `through`, or a refusal."""
        if self._counted_from_ns <= time.monotonic_ns() < self.end_ns:
            self._counts[what] += times

    def answer(self) -> Result:
        """For the harness: per second, but for what went wrong."""
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
    """A WebSocket client that sends while its socket takes anything."""

    def __init__(self, flood: FloodRun, subprotocol: str) -> None:
        self._flood = flood
        self._subprotocol = subprotocol
        self._received = b""
        self._is_full = False
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See Protocol."""
        self._transport = transport
        self._transport.set_write_buffer_limits(high=0)

    def pause_writing(self) -> None:
        """See Protocol."""
        self._is_full = True

    def resume_writing(self) -> None:
        """See Protocol."""
        self._is_full = False

    def offer(self, number: int) -> None:
        """Says something, if it can."""
        if not self._is_full and not self._transport.is_closing():
            self._transport.write(message_frame(number, time.monotonic_ns(), self._subprotocol))
            self._flood.count("sent")

    def data_received(self, data: bytes) -> None:
        """Counts acks and refusals."""
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
        """See Protocol."""
        self._flood.count("closed")

    def leave(self) -> None:
        """Is gone, and so is what it has sent that was not read yet."""
        found = self._transport.get_extra_info("socket")
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._transport.abort()


class Flooders:
    """The tenant's clients and backends."""

    def __init__(self, edge_port: int, stub: BroadcastServiceStub) -> None:
        self._edge_port = edge_port
        self._stub = stub
        self._said = 0

    async def by_websocket(
        self, door: dict[str, Any], clients: int, rate: float, seconds: float, lead_s: float
    ) -> Result:
        """Clients say something in turn; one whose socket is full says nothing."""
        opened = open_all(Endpoint(port=self._edge_port, **door), clients, at_a_time=50)
        if opened.refusals:
            raise RuntimeError(opened.refusals[0])
        flood, loop = FloodRun(rate, seconds, lead_s), asyncio.get_running_loop()
        make = functools.partial(Client, flood, door["subprotocol"])
        made = [(await loop.create_connection(make, sock=sock))[1] for sock in opened.sockets]
        async for due in due_items(flood.pace, flood.end_ns, MOST_AT_ONCE):
            flood.count("offered", len(due))
            for _ in due:
                made[self._said % clients].offer(self._said)
                self._said += 1
        answer = flood.answer()
        for client in made:
            client.leave()
        return answer

    async def by_unary(
        self, tenant: str, at_a_time: int, rate: float, seconds: float, lead_s: float
    ) -> Result:
        """Backends call; what is due while `at_a_time` calls are under way is not said."""
        requests, flood = (
            RequestFactory(None, PERSONS, keys=False, tenant=tenant),
            FloodRun(rate, seconds, lead_s),
        )
        under_way: set[asyncio.Task[None]] = set()

        async def call(number: int) -> None:
            flood.count("sent")
            try:
                await self._stub.Broadcast(requests.one(number, time.monotonic_ns()))
                flood.count("through")
            except grpc.aio.AioRpcError as error:
                limited = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                flood.count("RATE_LIMITED" if limited else f"{error.code().name}: {error.details()}")

        async for due in due_items(flood.pace, flood.end_ns, MOST_AT_ONCE):
            flood.count("offered", len(due))
            for number in due[: max(0, at_a_time - len(under_way))]:
                task = asyncio.create_task(call(number))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            # Calls begin in their turn.
            await asyncio.sleep(0)
        answer = flood.answer()
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        return answer

    async def by_many(self, tenant: str, rate: float, seconds: float, lead_s: float) -> Result:
        """A backend writes all that is due at once, and waits while that is not taken."""
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
            async for due in due_items(flood.pace, flood.end_ns, MOST_AT_ONCE):
                flood.count("offered", len(due))
                await call.write(requests.batch((number, flood.pace.due_ns(number)) for number in due))
                flood.count("sent", len(due))

        reading, writing = asyncio.create_task(read()), asyncio.create_task(write())
        await asyncio.wait([reading, writing], timeout=seconds)
        await asyncio.sleep(max(0.0, (flood.end_ns - time.monotonic_ns()) / 1e9))
        answer = flood.answer()
        writing.cancel()
        call.cancel()
        await asyncio.gather(reading, writing, return_exceptions=True)
        return answer


async def main(edge_port: int, router_port: int) -> None:
    """Takes orders."""
    os.nice(LOWEST_PRIORITY)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{router_port}") as channel:
        await channel.channel_ready()
        flooders = Flooders(edge_port, BroadcastServiceStub(channel))
        emit(ready=True)
        names = ("by_websocket", "by_unary", "by_many")
        await serve_commands({name: getattr(flooders, name) for name in names})


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
