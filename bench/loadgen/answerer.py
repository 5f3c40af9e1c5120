"""Load generator: an agent that answers what users say, on one raw `Attach` stream.

Commands: `answer` (answer each message at once) · `stream` (answer many in parallel, at an even rate).
"""

import sys

import grpc
import uvloop
from trunkline.v1 import message_pb2
from trunkline.v1.agent_service_pb2 import AttachRequest, AttachResponse, Delivery
from trunkline.v1.agent_service_pb2_grpc import AgentServiceStub

from bench.commands import Result, emit, serve_commands
from bench.loadgen.attach_stream import AttachStream
from bench.loadgen.reply_pacer import ReplyPacer

CAPACITY = 5000
DELTAS_PER_S = 20
ASKED_WITHIN_S, OPENED_WITHIN_S, ENDED_WITHIN_S = 60.0, 30.0, 30.0
LATE_NS = 500_000_000
"""Grace period after the end; deltas not sent by then are not offered."""
MAX_TICKS = 100


def answer_to(text: str) -> str:
    """Return the reply to a message."""
    return f"answer to {text}"


class Answerer(AttachStream):
    """`Attach` stream of the agent. Replies have the numbers of their deliveries."""

    def __init__(self, stub: AgentServiceStub) -> None:
        super().__init__(stub)
        self._answers_at_once = False
        self._waiting: list[Delivery] = []
        #: Texts of replies that are being opened.
        self._answers: dict[int, str] = {}
        self._opened: set[int] = set()
        self._ended: set[int] = set()
        self._errors = 0

    async def answer(self) -> Result:
        """Answer each message from now on by one delta."""
        self._answers_at_once = True
        return {"answering": True}

    async def stream(self, count: int, seconds: float) -> Result:
        """Wait for `count` messages, whose texts are numbers, and stream the answers in parallel."""
        self._answers_at_once, self._errors = False, 0
        emit(awaiting=count)
        await self._until(lambda: len(self._waiting) >= count, ASKED_WITHIN_S)
        asked, self._waiting = self._waiting, []
        await self._open(asked)
        pacer = await self._pace(asked, seconds)
        await self._end(asked, pacer.script.counts())
        result = pacer.result()
        texts = [each.message.parts[0].text.text for each in asked]
        digests = dict(zip(texts, result.pop("digests"), strict=True))
        return {**result, "asked": len(asked), "errors": self._errors, "digests": digests}

    async def _open(self, asked: list[Delivery]) -> None:
        batch = AttachRequest()
        for delivery in asked:
            number = delivery.delivery_id
            batch.opens.add(reply=number, key=f"reply-{number}", delivery_id=number)
        await self.write(batch)
        await self._until(lambda: self._opened >= {each.delivery_id for each in asked}, OPENED_WITHIN_S)

    async def _pace(self, asked: list[Delivery], seconds: float) -> ReplyPacer:
        pacer = ReplyPacer(len(asked), seconds, deltas_per_s=DELTAS_PER_S, late_ns=LATE_NS)
        async for due in pacer.due_deltas(MAX_TICKS):
            batch = AttachRequest()
            for reply, index, text in due:
                batch.deltas.add(reply=asked[reply].delivery_id).deltas.add(index=index, text=text)
            await self.write(batch)
        return pacer

    async def _end(self, asked: list[Delivery], counts: list[int]) -> None:
        batch = AttachRequest()
        for delivery, count in zip(asked, counts, strict=True):
            complete = message_pb2.MESSAGE_STATE_COMPLETE
            batch.ends.add(reply=delivery.delivery_id, state=complete, next_index=count)
            batch.settlements.add(delivery_id=delivery.delivery_id)
        await self.write(batch)
        await self._until(lambda: self._ended >= {each.delivery_id for each in asked}, ENDED_WITHIN_S)

    async def _received(self, batch: AttachResponse) -> None:
        if self._answers_at_once:
            await self._answer_all(batch)
        else:
            self._waiting.extend(batch.deliveries)
        for opened in batch.opened:
            self._errors += opened.HasField("error")
            self._opened.add(opened.reply)
        for ended in batch.ended:
            self._errors += ended.HasField("error")
            self._ended.add(ended.reply)
        self._errors += sum(progress.HasField("error") for progress in batch.progress)

    async def _answer_all(self, received: AttachResponse) -> None:
        """Open replies to the deliveries of a batch; write and end those that it reports as open."""
        batch = AttachRequest()
        for delivery in received.deliveries:
            number = delivery.delivery_id
            self._answers[number] = answer_to(delivery.message.parts[0].text.text)
            batch.opens.add(reply=number, key=f"reply-{number}", delivery_id=number)
        for opened in received.opened:
            number = opened.reply
            batch.deltas.add(reply=number).deltas.add(index=0, text=self._answers.pop(number))
            batch.ends.add(reply=number, state=message_pb2.MESSAGE_STATE_COMPLETE, next_index=1)
            batch.settlements.add(delivery_id=number)
        if batch.opens or batch.ends:
            await self.write(batch)


async def main(port: int) -> None:
    """Serve commands."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        await channel.channel_ready()
        answerer = Answerer(AgentServiceStub(channel))
        await answerer.hello(CAPACITY)
        emit(ready=True)
        await serve_commands({"answer": answerer.answer, "stream": answerer.stream})


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
