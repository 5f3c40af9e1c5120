"""Load generator: a worker that streams replies on one raw `Attach` stream.

Commands: `stream` (many replies in parallel) · `begin_reply` (leave one reply unfinished) · `finish_reply`.
"""

import asyncio
import functools
import sys
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeVar

import grpc
import uvloop
from trunkline.v1 import address_pb2, agent_service_pb2, message_pb2
from trunkline.v1.agent_service_pb2 import AttachRequest, AttachResponse
from trunkline.v1.agent_service_pb2_grpc import AgentServiceStub

from bench.commands import Result, emit, serve_commands
from bench.loadgen.attach_stream import AttachStream
from bench.loadgen.reply_pacer import ReplyPacer
from bench.loadgen.reply_text import DELTA_BYTES, delta_text, digest

OPENED_WITHIN_S, ENDED_WITHIN_S = 10.0, 30.0
MAX_BATCH, MAX_TICKS = 500, 100
HEARTBEAT_S = 3.0

Item = TypeVar("Item")


def conversation(kind: str, ident: str) -> address_pb2.Address:
    """Return the address of a conversation with the benchmark's agent."""
    kinds = {"person": address_pb2.CONVERSATION_KIND_PERSON, "group": address_pb2.CONVERSATION_KIND_GROUP}
    where = address_pb2.Conversation(kind=kinds[kind], id=ident)
    return address_pb2.Address(tenant="demo", agent="bench", platform="web", conversation=where)


class WorkerStream(AttachStream):
    """`Attach` stream and the state of its replies, by reply number."""

    def __init__(self, stub: AgentServiceStub) -> None:
        super().__init__(stub)
        self._run = uuid.uuid4().hex[:8]
        self.opened: set[int] = set()
        self.ended: Counter[int] = Counter()
        self.durable: dict[int, int] = {}
        self.refused: Counter[str] = Counter()

    async def open(self, addresses: Iterable[address_pb2.Address]) -> None:
        """Open one reply per address, numbered from 1, and wait until all are open."""
        batch = AttachRequest()
        for number, address in enumerate(addresses, 1):
            batch.opens.add(reply=number, key=f"{self._run}-{number}", address=address)
        await self.write(batch)
        await self._until(lambda: len(self.opened) == len(batch.opens), OPENED_WITHIN_S)

    async def end(self, counts: list[int]) -> None:
        """End all replies and wait for confirmation; `counts` are their numbers of deltas."""
        for numbers in chunks(list(enumerate(counts, 1))):
            batch = AttachRequest()
            for number, count in numbers:
                complete = message_pb2.MESSAGE_STATE_COMPLETE
                batch.ends.add(reply=number, state=complete, next_index=count)
            await self.write(batch)
        await self._until(lambda: len(self.ended) == len(counts), ENDED_WITHIN_S)

    async def wait_durable(self, number: int, count: int) -> None:
        """Wait until all deltas of a reply are on disk."""
        await self._until(lambda: self.durable.get(number) == count, OPENED_WITHIN_S)

    async def close(self) -> None:
        """End the stream."""
        await self._call.done_writing()
        await asyncio.wait_for(self._reading, ENDED_WITHIN_S)

    async def _received(self, batch: AttachResponse) -> None:
        for opened in batch.opened:
            self._count_error(opened.error.code if opened.HasField("error") else "")
            self.opened.add(opened.reply)
        for progress in batch.progress:
            self._count_error(progress.error.code if progress.HasField("error") else "")
            self.durable[progress.reply] = progress.durable_index
        for ended in batch.ended:
            self._count_error(ended.error.code if ended.HasField("error") else "")
            self.ended[ended.reply] += 1

    def _count_error(self, code: str) -> None:
        if code:
            self.refused[code] += 1


def chunks(items: list[Item]) -> Iterator[list[Item]]:
    """Split items into batches."""
    for at in range(0, len(items), MAX_BATCH):
        yield items[at : at + MAX_BATCH]


async def stream(stub: AgentServiceStub, persons: int, group: str, seconds: float) -> Result:
    """Stream one reply to each person and one to a group, in parallel, for `seconds`."""
    worker = WorkerStream(stub)
    await worker.hello(1)
    people = [conversation("person", str(person)) for person in range(persons)]
    await worker.open([*people, conversation("group", group)])
    pacer = ReplyPacer(persons + 1, seconds)
    async for due in pacer.due_deltas(MAX_TICKS):
        batch = AttachRequest()
        for reply, index, text in due:
            batch.deltas.add(reply=reply + 1).deltas.add(index=index, text=text)
        await worker.write(batch)
    counts = pacer.script.counts()
    await worker.end(counts)
    await worker.close()
    return {
        **pacer.result(),
        "refused": dict(worker.refused),
        "not_ended_once": sum(worker.ended[number] != 1 for number in range(1, len(counts) + 1)),
    }


class UnfinishedReply:
    """Reply that stays open between two commands."""

    def __init__(self, stub: AgentServiceStub) -> None:
        self._stub = stub
        self._worker: WorkerStream | None = None
        self._heartbeat: asyncio.Task[None] | None = None
        self._count = 0

    async def begin(self, person: str, size: int) -> Result:
        """Stream `size` bytes in one reply and leave it open."""
        worker = self._worker = WorkerStream(self._stub)
        await worker.hello(1)
        await worker.open([conversation("person", person)])
        texts = [delta_text(0, 0, index) for index in range(size // DELTA_BYTES)]
        self._count = len(texts)
        for numbered in chunks(list(enumerate(texts))):
            deltas = [message_pb2.Delta(index=index, text=text) for index, text in numbered]
            added = agent_service_pb2.ReplyDeltas(reply=1, deltas=deltas)
            await worker.write(AttachRequest(deltas=[added]))
        await worker.wait_durable(1, self._count)
        self._heartbeat = asyncio.create_task(self._send_heartbeats(worker))
        text = "".join(texts)
        return {"written": len(text), "digest": digest(text), "refused": dict(worker.refused)}

    async def finish(self) -> Result:
        """End the reply."""
        assert self._worker
        assert self._heartbeat
        self._heartbeat.cancel()
        await self._worker.end([self._count])
        await self._worker.close()
        return {"finished": True, "refused": dict(self._worker.refused)}

    async def _send_heartbeats(self, worker: WorkerStream) -> None:
        while True:
            await worker.write(AttachRequest())
            await asyncio.sleep(HEARTBEAT_S)


async def main(port: int) -> None:
    """Serve commands."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        await channel.channel_ready()
        stub = AgentServiceStub(channel)
        unfinished = UnfinishedReply(stub)
        emit(ready=True)
        await serve_commands(
            {
                "stream": functools.partial(stream, stub),
                "begin_reply": unfinished.begin,
                "finish_reply": unfinished.finish,
            }
        )


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
