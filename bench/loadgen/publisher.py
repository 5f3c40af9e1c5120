"""Load generator: a backend that publishes by `BroadcastMany` or `Broadcast`, with raw `grpc.aio`.

Batching is natural: each write carries all messages that became due during the last one.
"""

import asyncio
import functools
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterable

import grpc
import uvloop
from trunkline.v1 import address_pb2, broadcast_service_pb2, message_pb2
from trunkline.v1.broadcast_service_pb2_grpc import BroadcastServiceStub

from bench.commands import Result, emit, serve_commands
from bench.loadgen.chat_text import chat_text
from bench.loadgen.latency import Latencies
from bench.loadgen.open_loop import OpenLoop, PreciseTimer
from bench.processes import TENANT

FLAT_OUT_BATCH = 256
MAX_BATCH = 4096
RESULTS_WITHIN_S = 60.0

Stream = grpc.aio.StreamStreamCall[
    broadcast_service_pb2.BroadcastManyRequest, broadcast_service_pb2.BroadcastManyResponse
]


class RequestFactory:
    """Creates broadcasts to one group, or to many persons' conversations in turn."""

    def __init__(self, group: str | None, persons: int, keys: bool, tenant: str = TENANT) -> None:
        kind = address_pb2.CONVERSATION_KIND_GROUP if group else address_pb2.CONVERSATION_KIND_PERSON
        self._templates = [
            broadcast_service_pb2.BroadcastRequest(
                address=address_pb2.Address(
                    tenant=tenant,
                    agent="bench",
                    platform="web",
                    conversation=address_pb2.Conversation(kind=kind, id=group or str(person)),
                ),
                parts=[message_pb2.Part(text=message_pb2.TextPart())],
            )
            for person in range(1 if group else persons)
        ]
        self._run = uuid.uuid4().hex[:8] if keys else ""

    def one(self, number: int, due_ns: int) -> broadcast_service_pb2.BroadcastRequest:
        """Return the request for a number; reuses and changes the object of an earlier number."""
        request = self._templates[number % len(self._templates)]
        request.parts[0].text.text = chat_text(number, due_ns)
        if self._run:
            request.idempotency_key = f"{self._run}-{number}"
        return request

    def batch(self, due: Iterable[tuple[int, int]]) -> broadcast_service_pb2.BroadcastManyRequest:
        """Return one write for `(number, due_ns)` pairs."""
        batch = broadcast_service_pb2.BroadcastManyRequest()
        for number, due_ns in due:
            batch.requests.add(number=number, request=self.one(number, due_ns))
        return batch


class ResultReader:
    """Counts the results of requests."""

    def __init__(self) -> None:
        self.accepted = 0
        self.batches = 0
        self.last_ns = 0
        self.refused: Counter[str] = Counter()

    async def read(self, call: Stream) -> None:
        """Count results until the stream ends."""
        async for response in call:
            self.batches += 1
            for result in response.results:
                if result.HasField("error"):
                    self.refused[result.error.code] += 1
                else:
                    self.accepted += 1
            self.last_ns = time.monotonic_ns()


async def publish(
    stub: BroadcastServiceStub,
    rate: float | None,
    seconds: float,
    group: str | None = None,
    persons: int = 100,
    keys: bool = False,
) -> Result:
    """Publish for `seconds`, at `rate` or, if that is None, as fast as flow control allows.

    Messages that became due but were not written before the end count as offered, not as accepted.
    """
    requests, results = RequestFactory(group, persons, keys), ResultReader()
    call: Stream = stub.BroadcastMany()
    reading = asyncio.create_task(results.read(call))
    start_ns = time.monotonic_ns()
    end_ns = start_ns + int(seconds * 1e9)
    if rate is None:
        offered = await _flat_out(call, requests, end_ns)
    else:
        offered = int(rate * seconds)
        await _paced(call, requests, OpenLoop(rate, seconds, start_ns), end_ns)
    await call.done_writing()
    await asyncio.wait_for(reading, RESULTS_WITHIN_S)
    return {
        "offered": offered,
        "accepted": results.accepted,
        "refused": dict(results.refused),
        "answers": results.batches,
        "start_ns": start_ns,
        "elapsed_s": (results.last_ns - start_ns) / 1e9,
    }


async def _flat_out(call: Stream, requests: RequestFactory, end_ns: int) -> int:
    number = 0
    while (now := time.monotonic_ns()) < end_ns:
        await call.write(requests.batch((n, now) for n in range(number, number + FLAT_OUT_BATCH)))
        number += FLAT_OUT_BATCH
    return number


async def _paced(call: Stream, requests: RequestFactory, schedule: OpenLoop, end_ns: int) -> None:
    timer = PreciseTimer()
    while schedule.taken < schedule.total and (now := time.monotonic_ns()) < end_ns:
        if due := schedule.take(now, MAX_BATCH):
            await call.write(requests.batch((n, schedule.due_ns(n)) for n in due))
        else:
            await timer.wait(schedule.wait_s(now))
    timer.stop()


async def publish_unary(stub: BroadcastServiceStub, seconds: float, at_a_time: int, persons: int) -> Result:
    """Call `Broadcast` for `seconds`, with `at_a_time` calls in flight."""
    requests, latencies = RequestFactory(None, persons, keys=False), Latencies()
    start_ns = time.monotonic_ns()
    end_ns = start_ns + int(seconds * 1e9)
    numbers = iter(range(10**9))

    async def call_repeatedly() -> None:
        while (now := time.monotonic_ns()) < end_ns:
            await stub.Broadcast(requests.one(next(numbers), now))
            latencies.add_ns(time.monotonic_ns() - now)

    await asyncio.gather(*(call_repeatedly() for _ in range(at_a_time)))
    figures = latencies.figures()
    elapsed_s = (time.monotonic_ns() - start_ns) / 1e9
    return {"accepted": figures["samples"], "elapsed_s": elapsed_s, "latency": figures}


async def main(port: int) -> None:
    """Serve the commands `publish` and `publish_unary`."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        await channel.channel_ready()
        stub = BroadcastServiceStub(channel)
        emit(ready=True)
        await serve_commands(
            {
                "publish": functools.partial(publish, stub),
                "publish_unary": functools.partial(publish_unary, stub),
            }
        )


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
