"""Producers of streamed replies as the contract describes them: a worker's stream, and a backend."""

from __future__ import annotations

from typing import Any

from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import AttachHello, AttachRequest, ReplyEnded, ReplyOpened
from trunkline.v1.catalogue import Refused
from trunkline.v1.message_pb2 import ROLE_SYSTEM, Author, Message, MessageState
from trunkline_router.core.directory.connections import Link
from trunkline_router.core.replies.streamed_message import MessageEnd, StreamedMessage
from trunkline_router.core.replies.worker_replies import WorkerReplies
from trunkline_router.core.values.topics import Position, TopicKey, address_of

from tests.router.core.harness.router import Router

COMPLETE = MessageState.MESSAGE_STATE_COMPLETE
CANCELLED = MessageState.MESSAGE_STATE_CANCELLED
FAILED = MessageState.MESSAGE_STATE_FAILED
EXPIRED = MessageState.MESSAGE_STATE_EXPIRED


class Streaming:
    """A worker's stream and everything received over it; `read` takes waiting batches."""

    def __init__(self, router: Router, ident: str = "w", capacity: int = 10, agent: str = "a") -> None:
        self.router = router
        hello = AttachHello(
            tenant="t",
            agents=[agent],
            capacity=capacity,
            worker_id=ident,
            contract_minor=catalogue.CONTRACT_MINOR,
        )
        self.worker = router.core.worker_attached(hello, router.now)
        router.core.worker_welcomed(self.worker)
        #: By delivery id: the message and the latest attempt.
        self.given: dict[int, tuple[Message, int]] = {}
        self.opened: dict[int, ReplyOpened] = {}
        self.progress: list[Any] = []
        self.ended: dict[int, ReplyEnded] = {}
        self.cancelled: list[int] = []
        self.results: list[Any] = []
        self._number = 0
        self.sync()

    @property
    def replies(self) -> WorkerReplies:
        """The core's table of the worker's replies."""
        return self.router.core.streamed_replies.replies_of(self.worker)

    def sync(self) -> None:
        """Carry batches, then read the result."""
        self.router.carry()
        self.read()

    def read(self) -> None:
        """Take waiting batches."""
        while (batch := self.worker.take()) is not None:
            self.given |= {d.delivery_id: (d.message, d.attempt) for d in batch.deliveries}
            self.opened |= {opened.reply: opened for opened in batch.opened}
            self.progress += batch.progress
            for ended in batch.ended:
                known = self.ended.get(ended.reply)
                assert known is None or known.HasField("error") or known == ended, "it ended twice"
                self.ended[ended.reply] = ended
            self.cancelled += batch.cancelled
            self.results += batch.results

    def send(self, batch: AttachRequest) -> None:
        """Send a batch."""
        self.router.core.worker_received(self.worker, batch, self.router.now)
        self.sync()

    def open(self, target: int | TopicKey, key: str = "k", **more: Any) -> int:
        """Open a reply to a delivery, or at an address. Returns its number."""
        self._number += 1
        batch = AttachRequest()
        opening = batch.opens.add(reply=self._number, key=key, **more)
        if isinstance(target, int):
            opening.delivery_id = target
        else:
            opening.address.CopyFrom(address_of(target))
        self.send(batch)
        return self._number

    def add(self, number: int, index: int, *texts: str) -> None:
        """Send deltas of a reply."""
        batch = AttachRequest()
        added = batch.deltas.add(reply=number)
        for step, text in enumerate(texts):
            added.deltas.add(index=index + step, text=text)
        self.send(batch)

    def end(self, number: int, next_index: int = 0, state: MessageState.ValueType = COMPLETE) -> None:
        """End a reply."""
        batch = AttachRequest()
        batch.ends.add(reply=number, state=state, next_index=next_index)
        self.send(batch)

    def settle(self, delivery_id: int, *replies: str, **outcome: Any) -> None:
        """Settle a delivery."""
        batch = AttachRequest()
        settlement = batch.settlements.add(delivery_id=delivery_id, **outcome)
        for text in replies:
            settlement.replies.add().parts.add().text.text = text
        self.send(batch)

    def detach(self) -> None:
        """The stream breaks."""
        self.router.core.worker_detached(self.worker, self.router.now)
        self.router.carry()


class Producing:
    """A backend that streams a message, with the checks that precede the core."""

    def __init__(
        self, router: Router, topic: TopicKey, key: str = "k", name: str = "b", reply_to: str = ""
    ) -> None:
        self.router = router
        self.blocked_by: set[Link] = set()
        self.message: Message | None = None
        self.reason: Refused | None = None
        self.epoch = 0
        self.states: list[MessageState.ValueType] = []
        message = Message(address=address_of(topic), author=Author(role=ROLE_SYSTEM), reply_to=reply_to)
        router.core.message_opener.open(
            topic, message, scope="open", key=key, producer=name, listener=self, now=router.now
        )
        router.carry()

    def opened(self, message: StreamedMessage) -> None:
        """The message is open, and this backend its producer."""
        message.owner = None
        self.message, self.epoch = message.snapshot(), message.producer.epoch

    def ended(self, message: Any, position: Position | None = None) -> None:
        """The message had ended before; with a position, the requested end is on disk."""
        if isinstance(message, Message):
            self.message = message
        else:
            self.states.append(message)

    def refused(self, reason: Refused) -> None:
        """The message was not opened."""
        self.reason = reason

    def not_ended(self, reason: Refused) -> None:
        """The end was not committed."""
        self.reason = reason

    @property
    def open(self) -> StreamedMessage:
        """Return the message. Raises Refused if it has ended, or has another producer."""
        assert self.message is not None
        found = self.router.core.open_messages.get(self.message.id)
        if found is None or found.ended is not None:
            raise catalogue.MESSAGE_ENDED.refused(message_id=self.message.id, state="")
        if found.owner is not None or found.producer.epoch != self.epoch:
            raise found.fenced()
        return found

    def add(self, index: int, *texts: str) -> int:
        """Append deltas. Returns the next expected index. Raises Refused."""
        batch = AttachRequest()
        deltas = batch.deltas.add().deltas
        for step, text in enumerate(texts):
            deltas.add(index=index + step, text=text)
        found = self.open
        try:
            self.router.core.open_messages.extend(found, deltas, self.blocked_by, self.router.now)
        finally:
            self.router.carry()
        return found.next_index

    def end(self, state: MessageState.ValueType = COMPLETE) -> None:
        """End the message. Raises Refused."""
        self.router.core.open_messages.end(self.open, MessageEnd(state), self, None)


def pass_time(router: Router, seconds: float, *workers: Streaming) -> None:
    """Let time pass while these workers send something."""
    for worker in workers:
        worker.worker.heard_at = router.now + seconds
    router.tick(seconds)
    router.run()
