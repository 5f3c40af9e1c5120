"""An agent that answers bit by bit, as a process: streamed replies on one raw `Attach` stream.

Orders: `stream` (many replies side by side) · `hold` (one that has come half-way) · `release`.
"""

import asyncio
import functools
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import grpc
import uvloop
from trunkline.v1 import address_pb2, agent_service_pb2, catalogue, message_pb2
from trunkline.v1.agent_service_pb2 import AttachRequest, AttachResponse
from trunkline.v1.agent_service_pb2_grpc import AgentServiceStub

from bench.commands import Result, emit, serve_commands
from bench.loadgen.reply_pacer import ReplyPacer
from bench.loadgen.reply_text import DELTA_BYTES, delta_text, digest

OPENED_WITHIN_S, ENDED_WITHIN_S = 10.0, 30.0
MOST_IN_BATCH, MOST_TICKS = 500, 100
SIGN_OF_LIFE_S = 3.0

Item = TypeVar("Item")


def conversation(kind: str, ident: str) -> address_pb2.Address:
    """A conversation of the agent that the benchmarks use."""
    kinds = {"person": address_pb2.CONVERSATION_KIND_PERSON, "group": address_pb2.CONVERSATION_KIND_GROUP}
    where = address_pb2.Conversation(kind=kinds[kind], id=ident)
    return address_pb2.Address(tenant="demo", agent="bench", platform="web", conversation=where)


class WorkerStream:
    """One stream, and what has become of the replies on it, by their numbers."""

    def __init__(self, stub: AgentServiceStub) -> None:
        self._call: grpc.aio.StreamStreamCall[AttachRequest, AttachResponse] = stub.Attach()
        self._run = uuid.uuid4().hex[:8]
        self._news = asyncio.Event()
        self.opened: set[int] = set()
        self.ended: Counter[int] = Counter()
        self.durable: dict[int, int] = {}
        self.refused: Counter[str] = Counter()
        self._reading = asyncio.create_task(self._read())

    async def hello(self) -> None:
        """Says who attaches."""
        hello = agent_service_pb2.AttachHello(
            tenant="demo", agents=["bench"], capacity=1, contract_minor=catalogue.CONTRACT_MINOR
        )
        await self.write(AttachRequest(hello=hello))

    async def write(self, batch: AttachRequest) -> None:
        """Hands a batch to the stream."""
        await self._call.write(batch)

    async def open(self, addresses: Iterable[address_pb2.Address]) -> None:
        """Opens one reply for each address, numbered from 1, and waits until all are open."""
        batch = AttachRequest()
        for number, address in enumerate(addresses, 1):
            batch.opens.add(reply=number, key=f"{self._run}-{number}", address=address)
        await self.write(batch)
        await self._until(lambda: len(self.opened) == len(batch.opens), OPENED_WITHIN_S)

    async def end(self, counts: list[int]) -> None:
        """Ends all replies, which have so many deltas, and waits until the router says so."""
        for numbers in chunks(list(enumerate(counts, 1))):
            batch = AttachRequest()
            for number, count in numbers:
                complete = message_pb2.MESSAGE_STATE_COMPLETE
                batch.ends.add(reply=number, state=complete, next_index=count)
            await self.write(batch)
        await self._until(lambda: len(self.ended) == len(counts), ENDED_WITHIN_S)

    async def saved(self, number: int, count: int) -> None:
        """Waits until all deltas of a reply are on disk."""
        await self._until(lambda: self.durable.get(number) == count, OPENED_WITHIN_S)

    async def close(self) -> None:
        """Ends the stream."""
        await self._call.done_writing()
        await asyncio.wait_for(self._reading, ENDED_WITHIN_S)

    async def _until(self, there: Callable[[], bool], within_s: float) -> None:
        """Waits for what the router says; whoever asks finds out what is missing where it takes too long."""
        deadline = time.monotonic() + within_s
        while not there() and not self._reading.done() and time.monotonic() < deadline:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), 1.0)
            except TimeoutError:
                continue

    async def _read(self) -> None:
        async for batch in self._call:
            for opened in batch.opened:
                self._note(opened.error.code if opened.HasField("error") else "")
                self.opened.add(opened.reply)
            for progress in batch.progress:
                self._note(progress.error.code if progress.HasField("error") else "")
                self.durable[progress.reply] = progress.durable_index
            for ended in batch.ended:
                self._note(ended.error.code if ended.HasField("error") else "")
                self.ended[ended.reply] += 1
            self._news.set()

    def _note(self, code: str) -> None:
        if code:
            self.refused[code] += 1


def chunks(items: list[Item]) -> Iterator[list[Item]]:
    """The items in portions of one batch each."""
    for at in range(0, len(items), MOST_IN_BATCH):
        yield items[at : at + MOST_IN_BATCH]


async def stream(stub: AgentServiceStub, persons: int, group: str, seconds: float) -> Result:
    """Streams one reply to each person and one to a group, side by side, for some seconds."""
    attachment = WorkerStream(stub)
    await attachment.hello()
    people = [conversation("person", str(person)) for person in range(persons)]
    await attachment.open([*people, conversation("group", group)])
    saying = ReplyPacer(persons + 1, seconds)
    async for due in saying.rounds(MOST_TICKS):
        batch = AttachRequest()
        for reply, index, text in due:
            batch.deltas.add(reply=reply + 1).deltas.add(index=index, text=text)
        await attachment.write(batch)
    counts = saying.script.counts()
    await attachment.end(counts)
    await attachment.close()
    return {
        **saying.answer(),
        "refused": dict(attachment.refused),
        "not_ended_once": sum(attachment.ended[number] != 1 for number in range(1, len(counts) + 1)),
    }


class UnfinishedReply:
    """Keeps one reply half-way."""

    def __init__(self, stub: AgentServiceStub) -> None:
        self._stub = stub
        self._attachment: WorkerStream | None = None
        self._alive: asyncio.Task[None] | None = None
        self._count = 0

    async def hold(self, person: str, size: int) -> Result:
        """Says so many bytes in one reply and leaves it open."""
        attachment = self._attachment = WorkerStream(self._stub)
        await attachment.hello()
        await attachment.open([conversation("person", person)])
        texts = [delta_text(0, 0, index) for index in range(size // DELTA_BYTES)]
        self._count = len(texts)
        for numbered in chunks(list(enumerate(texts))):
            deltas = [message_pb2.Delta(index=index, text=text) for index, text in numbered]
            added = agent_service_pb2.ReplyDeltas(reply=1, deltas=deltas)
            await attachment.write(AttachRequest(deltas=[added]))
        await attachment.saved(1, self._count)
        self._alive = asyncio.create_task(self._stay(attachment))
        said = "".join(texts)
        return {"held": len(said), "digest": digest(said), "refused": dict(attachment.refused)}

    async def release(self) -> Result:
        """Ends it."""
        assert self._attachment
        assert self._alive
        self._alive.cancel()
        await self._attachment.end([self._count])
        await self._attachment.close()
        return {"released": True, "refused": dict(self._attachment.refused)}

    async def _stay(self, attachment: WorkerStream) -> None:
        while True:
            await attachment.write(AttachRequest())
            await asyncio.sleep(SIGN_OF_LIFE_S)


async def main(port: int) -> None:
    """Takes orders."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.channel_ready()
        stub = AgentServiceStub(channel)
        holder = UnfinishedReply(stub)
        emit(ready=True)
        await serve_commands(
            {
                "stream": functools.partial(stream, stub),
                "hold": holder.hold,
                "release": holder.release,
            }
        )


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
