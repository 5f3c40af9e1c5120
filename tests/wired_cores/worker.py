"""A worker that streams replies, as the contract describes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import AttachHello, AttachRequest, AttachResponse
from trunkline.v1.message_pb2 import MESSAGE_STATE_OPEN, Delta, MessageState

from tests.edge.core.core_harness import group

if TYPE_CHECKING:
    from tests.wired_cores.harness import World


class Reply:
    """An open reply; `next_index` is None until it is opened."""

    def __init__(self) -> None:
        self.message_id = ""
        self.next_index: int | None = None


class Worker:
    """A worker's stream. Its messages arrive at once; it reads only when called."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        hello = AttachHello(tenant="t", agents=["a"], capacity=2, worker_id=name)
        hello.contract_minor = catalogue.CONTRACT_MINOR
        self.peer = world.router.worker_attached(hello, world.now)
        world.router.worker_welcomed(self.peer)
        self.replies: dict[int, Reply] = {}
        self.deliveries: list[int] = []
        self._numbers = 0

    def read(self) -> None:
        """Read everything waiting."""
        while self.peer in self.world.mail and (batch := self.peer.take()) is not None:
            self._receive(batch)
        self.world.mail.discard(self.peer)

    def _receive(self, batch: AttachResponse) -> None:
        self.deliveries += [delivery.delivery_id for delivery in batch.deliveries]
        for opened in batch.opened:
            if opened.HasField("error") or opened.message.state != MESSAGE_STATE_OPEN:
                del self.replies[opened.reply]
            else:
                reply = self.replies[opened.reply]
                reply.message_id, reply.next_index = opened.message.id, opened.message.next_index
        for progress in batch.progress:
            known = self.replies.get(progress.reply)
            if known is None:
                continue
            if progress.HasField("error"):
                assert progress.error.code in ("PRODUCER_FENCED", "MESSAGE_ENDED"), progress.error.code
                del self.replies[progress.reply]
            else:
                known.next_index = progress.next_index
                self.world.promised[known.message_id] = progress.durable_index
        for ended in batch.ended:
            if not ended.HasField("error") and (known := self.replies.pop(ended.reply, None)):
                self.world.note_end(known.message_id, ended.state, ended.position.seq)
        gone = {result.delivery_id for result in batch.results}
        self.deliveries = [delivery for delivery in self.deliveries if delivery not in gone]

    def _send(self, batch: AttachRequest) -> None:
        self.world.router.worker_received(self.peer, batch, self.world.now)

    def open(self, name: str, key: str, delivery_id: int | None = None) -> None:
        """Open or take over a reply, in a group or to a delivery."""
        self._numbers += 1
        self.replies[self._numbers] = Reply()
        batch = AttachRequest()
        opening = batch.opens.add(reply=self._numbers, key=key)
        if delivery_id is None:
            opening.address.CopyFrom(group(name))
        else:
            opening.delivery_id = delivery_id
        self._send(batch)

    def opened(self) -> list[int]:
        """Return its replies that accept deltas."""
        self.read()
        return [number for number, reply in self.replies.items() if reply.next_index is not None]

    def add(self, number: int, kinds: str) -> None:
        """Append one delta per letter: t, r or p. Each contains its index and author."""
        reply = self.replies[number]
        assert reply.next_index is not None
        batch = AttachRequest()
        added = batch.deltas.add(reply=number)
        for kind in kinds:
            token = f"{reply.next_index}.{self.name} "
            delta = Delta(index=reply.next_index)
            if kind == "t":
                delta.text = token
            elif kind == "r":
                delta.reasoning = token
            else:
                delta.part.tool_call.call_id, delta.part.tool_call.arguments = "c", token
            added.deltas.append(delta)
            reply.next_index += 1
        self._send(batch)

    def end(self, number: int, state: MessageState.ValueType) -> None:
        """End a reply."""
        next_index = self.replies[number].next_index or 0
        batch = AttachRequest()
        batch.ends.add(reply=number, state=state, next_index=next_index)
        self._send(batch)

    def settle(self, delivery_id: int, answers: bool) -> None:
        """Settle a delivery."""
        batch = AttachRequest()
        settlement = batch.settlements.add(delivery_id=delivery_id)
        if answers:
            settlement.replies.add().parts.add().text.text = "at once"
        self.deliveries.remove(delivery_id)
        self._send(batch)
