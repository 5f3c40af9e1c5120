"""Streamed replies of workers: opens, deltas and ends of an AttachRequest, and their answers."""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import AttachRequest, EndReply, OpenReply, ReplyDeltas
from trunkline.v1.catalogue import Refused
from trunkline.v1.message_pb2 import (
    ROLE_AGENT,
    Message,
    MessageState,
)
from trunkline_runtime.refusals import to_error

from trunkline_router.core.agents.worker import AttachedWorker, LeasedDelivery
from trunkline_router.core.commits.effects import Effects
from trunkline_router.core.directory.connections import Link
from trunkline_router.core.replies.open_messages import OpenMessages
from trunkline_router.core.replies.open_operation import MessageOpener
from trunkline_router.core.replies.streamed_message import MessageEnd, StreamedMessage
from trunkline_router.core.replies.worker_replies import EndedReply, WorkerReplies
from trunkline_router.core.validation.validator import check, topic_address
from trunkline_router.core.values.message_states import COMPLETE, OPEN
from trunkline_router.core.values.topics import Position, TopicKey, address_of, topic_of

#: Approximate size of an answer in a batch.
ANSWER_BYTES = 64


class StreamedReplies:
    """Handles the streamed replies of workers and notifies their producers."""

    def __init__(self, open_messages: OpenMessages, opener: MessageOpener, effects: Effects) -> None:
        self._open_messages = open_messages
        self._opener = opener
        self._effects = effects
        #: Of the attached workers that have opened replies.
        self._by_worker: dict[AttachedWorker, WorkerReplies] = {}
        open_messages.on_progress = self._progressed
        open_messages.on_ended = self._message_ended

    def replies_of(self, worker: AttachedWorker) -> WorkerReplies:
        """Return a worker's replies."""
        replies = self._by_worker.get(worker)
        if replies is None:
            replies = WorkerReplies()
            if worker.is_attached:
                self._by_worker[worker] = replies
        return replies

    def received(self, worker: AttachedWorker, batch: AttachRequest, now: float) -> None:
        """The worker sent a batch."""
        for opening in batch.opens:
            try:
                self._open(worker, opening, now)
            except Refused as reason:
                self.not_opened(worker, opening.reply, reason)
        for deltas in batch.deltas:
            self._extend(worker, deltas, now)
        for ending in batch.ends:
            try:
                self._end(worker, ending)
            except Refused as reason:
                self.not_ended(worker, ending.reply, reason)

    def detached(self, worker: AttachedWorker) -> None:
        """The worker's stream ended: its replies stay open for one lease, for another producer."""
        replies = self._by_worker.pop(worker, None)
        if replies is None:
            return
        for message in replies.current.values():
            if message is not None:
                message.heard_at = worker.heard_at

    # Opening

    def _open(self, worker: AttachedWorker, opening: OpenReply, now: float) -> None:
        check(opening)
        number = opening.reply
        replies = self.replies_of(worker)
        if number in replies:
            problem = f"{number} was used on this stream before"
            raise catalogue.INVALID_ARGUMENT.refused(field="reply", problem=problem)
        leased = _leased(worker, opening)
        if leased is not None:
            topic = leased.delivery.topic
            message = Message(address=address_of(topic), reply_to=leased.message_id)
        else:
            topic = _own_topic(worker, opening)
            message = Message(address=opening.address, reply_to=opening.reply_to)
        message.author.role = ROLE_AGENT
        message.author.name = opening.name or topic[1]
        if opening.attributes:
            message.attributes.update(opening.attributes)
        self._opener.open(
            topic,
            message,
            scope="reply",
            key=opening.key,
            producer=worker.worker_id,
            listener=OpenReplyListener(self, worker, number, leased),
            now=now,
        )
        replies.current[number] = None

    def opened(
        self, worker: AttachedWorker, number: int, message: StreamedMessage, leased: LeasedDelivery | None
    ) -> None:
        """The message is committed, with this worker as its producer."""
        before = message.owner
        if before is not None:
            ended = EndedReply(message.id, OPEN, None)
            self.replies_of(before).end(message.reply_number, ended)
            self._send_progress(before, message.reply_number, message, message.fenced())
        if leased is not None and leased.is_cancelled:
            # Even if the worker is gone: nobody else would end it before its lease.
            self._open_messages.cancel(message, None, None)
        if not worker.is_attached:
            message.owner = None
            return
        message.owner, message.reply_number = worker, number
        self.replies_of(worker).current[number] = message
        opened = worker.batch_for(ANSWER_BYTES + message.size).opened.add(reply=number)
        opened.message.CopyFrom(message.snapshot())
        # Tells how many of the deltas in the snapshot are durable.
        self._send_progress(worker, number, message)
        if leased is not None:
            leased.is_answered = True

    def already_ended(
        self, worker: AttachedWorker, number: int, message: Message, leased: LeasedDelivery | None
    ) -> None:
        """The key belongs to a message that has ended."""
        if leased is not None:
            leased.is_answered = True
        self.replies_of(worker).end(number, EndedReply(message.id, message.state, None))
        opened = worker.batch_for(ANSWER_BYTES + message.ByteSize()).opened.add(reply=number)
        opened.message.CopyFrom(message)
        self._notify(worker)

    def not_opened(self, worker: AttachedWorker, number: int, reason: Refused) -> None:
        """The reply was rejected, or not committed."""
        self.replies_of(worker).cancel_opening(number)
        opened = worker.batch_for(ANSWER_BYTES).opened.add(reply=number)
        opened.error.CopyFrom(to_error(reason))
        self._notify(worker)

    # Deltas

    def _extend(self, worker: AttachedWorker, added: ReplyDeltas, now: float) -> None:
        replies = self.replies_of(worker)
        message = replies.current.get(added.reply)
        if message is None:
            self._send_progress(worker, added.reply, None, replies.closed_error(added.reply))
            return
        expected = message.next_index
        try:
            self._open_messages.extend(message, added.deltas, worker.blocked_by, now)
        except Refused as reason:
            self._send_progress(worker, added.reply, message, reason)
            return
        if added.deltas and added.deltas[0].index < expected:
            self._send_progress(worker, added.reply, message)

    def _progressed(self, message: StreamedMessage) -> None:
        if message.owner is not None:
            self._send_progress(message.owner, message.reply_number, message)

    def _send_progress(
        self,
        worker: AttachedWorker,
        number: int,
        message: StreamedMessage | None,
        error: Refused | None = None,
    ) -> None:
        if not worker.is_attached:
            return
        progress = worker.batch_for(ANSWER_BYTES).progress.add(reply=number)
        if message is not None:
            progress.next_index = message.next_index
            progress.durable_index = message.durable_index
        if error is not None:
            progress.error.CopyFrom(to_error(error))
        self._notify(worker)

    # Ends

    def _end(self, worker: AttachedWorker, ending: EndReply) -> None:
        replies = self.replies_of(worker)
        message = replies.current.get(ending.reply)
        if message is None:
            known = replies.ended.get(ending.reply)
            if known is None or known.state == OPEN:
                raise replies.closed_error(ending.reply)
            self._send_ended(worker, ending.reply, known.state, known.position)
            return
        check(ending)
        if ending.state == COMPLETE and ending.next_index != message.next_index:
            raise message.gap(ending.next_index)
        end = MessageEnd.requested(ending)
        self._open_messages.end(message, end, EndReplyListener(self, worker, ending.reply), None)

    def _message_ended(self, message: StreamedMessage, position: Position) -> None:
        """Notify the producer of a message that has ended, for whatever reason."""
        worker = message.owner
        if worker is not None and message.ended is not None:
            state = message.ended.state
            self.replies_of(worker).end(message.reply_number, EndedReply(message.id, state, position))
            self._send_ended(worker, message.reply_number, state, position)

    def _send_ended(
        self, worker: AttachedWorker, number: int, state: MessageState.ValueType, position: Position | None
    ) -> None:
        if not worker.is_attached:
            return
        ended = worker.batch_for(ANSWER_BYTES).ended.add(reply=number, state=state)
        if position is not None:
            ended.position.CopyFrom(position.to_proto())
        self._notify(worker)

    def not_ended(self, worker: AttachedWorker, number: int, reason: Refused) -> None:
        """The end was rejected, or not committed."""
        if worker.is_attached:
            worker.batch_for(ANSWER_BYTES).ended.add(reply=number).error.CopyFrom(to_error(reason))
            self._notify(worker)

    def topic_erased(self, topic: TopicKey) -> None:
        """A topic's log was erased, and its open messages with it."""
        for message in self._open_messages.topic_erased(topic):
            worker = message.owner
            if worker is not None:
                error = catalogue.MESSAGE_NOT_FOUND.refused(message_id=message.id)
                message.owner = None
                self.replies_of(worker).current.pop(message.reply_number, None)
                self.not_ended(worker, message.reply_number, error)

    def _notify(self, worker: AttachedWorker) -> None:
        if worker.is_attached:
            self._effects.writable_peers.add(worker)


def _leased(worker: AttachedWorker, opening: OpenReply) -> LeasedDelivery | None:
    """Return the delivery that the reply answers, or None if it names an address instead."""
    if opening.WhichOneof("target") != "delivery_id":
        return None
    leased = worker.held.get(opening.delivery_id)
    if leased is None or leased.is_settling or leased.is_erased:
        raise catalogue.DELIVERY_NOT_HELD.refused(delivery_id=opening.delivery_id)
    if opening.reply_to:
        problem = "must be empty if delivery_id is set"
        raise catalogue.INVALID_ARGUMENT.refused(field="reply_to", problem=problem)
    return leased


def _own_topic(worker: AttachedWorker, opening: OpenReply) -> TopicKey:
    if not opening.HasField("address"):
        raise catalogue.INVALID_ARGUMENT.refused(field="target", problem="must be set")
    topic = topic_of(topic_address(opening.address))
    if topic[0] != worker.tenant or topic[1] not in worker.agents:
        problem = "must be a topic of one of the worker's agents"
        raise catalogue.INVALID_ARGUMENT.refused(field="address", problem=problem)
    return topic


class OpenReplyListener:
    """Listener of a reply that a worker opens."""

    __slots__ = ("_leased", "_number", "_replies", "_worker")

    def __init__(
        self, replies: StreamedReplies, worker: AttachedWorker, number: int, leased: LeasedDelivery | None
    ) -> None:
        self._replies = replies
        self._worker = worker
        self._number = number
        self._leased = leased

    @property
    def blocked_by(self) -> set[Link]:
        """Outboxes that the worker's replies have filled; the runtime stops reading from it."""
        return self._worker.blocked_by

    def opened(self, message: StreamedMessage) -> None:
        """The reply is open."""
        self._replies.opened(self._worker, self._number, message, self._leased)

    def ended(self, message: Message) -> None:
        """The key belongs to a message that has ended."""
        self._replies.already_ended(self._worker, self._number, message, self._leased)

    def refused(self, reason: Refused) -> None:
        """The reply was not opened."""
        self._replies.not_opened(self._worker, self._number, reason)


class EndReplyListener:
    """Listener of an end that a worker requested; the producer is notified of the end itself anyway."""

    __slots__ = ("_number", "_replies", "_worker")

    def __init__(self, replies: StreamedReplies, worker: AttachedWorker, number: int) -> None:
        self._replies = replies
        self._worker = worker
        self._number = number

    def ended(self, state: MessageState.ValueType, position: Position | None) -> None:
        """The end is committed."""

    def not_ended(self, reason: Refused) -> None:
        """The end was not committed."""
        self._replies.not_ended(self._worker, self._number, reason)
