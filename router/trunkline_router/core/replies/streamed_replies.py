"""Streamed replies of workers: what an AttachRequest says of them, and what is told back."""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import AttachRequest, EndReply, OpenReply, ReplyDeltas
from trunkline.v1.catalogue import Refused
from trunkline.v1.error_pb2 import Error
from trunkline.v1.message_pb2 import ROLE_AGENT, Message, MessageState
from trunkline_runtime.refusals import to_error

from trunkline_router.core.agents.agent_queue import LeasedDelivery
from trunkline_router.core.agents.worker import AttachedWorker
from trunkline_router.core.directory.connections import Link
from trunkline_router.core.replies.open_messages import OpenMessages
from trunkline_router.core.replies.open_operation import MessageOpener
from trunkline_router.core.replies.streamed_message import Ended, StreamedMessage
from trunkline_router.core.replies.worker_replies import EndedReply, WorkerReplies
from trunkline_router.core.validation.validator import check, topic_address
from trunkline_router.core.values.message_states import COMPLETE, OPEN
from trunkline_router.core.values.topics import Position, TopicKey, topic_of

#: What an answer weighs in a batch, about.
ANSWER_BYTES = 64


class StreamedReplies:
    """Deals with what workers say of their streamed replies."""

    def __init__(self, open_messages: OpenMessages, opener: MessageOpener, mail: set[AttachedWorker]) -> None:
        self._open_messages = open_messages
        self._opener = opener
        self._mail = mail
        self._replies: dict[AttachedWorker, WorkerReplies] = {}
        open_messages.saved = self._saved
        open_messages.ended = self._ended

    def received(self, worker: AttachedWorker, batch: AttachRequest, now: float) -> None:
        """A worker sent a batch."""
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
        """The worker's stream ended: its replies wait for whoever takes them up, for a lease."""
        for message in self._replies.pop(worker, WorkerReplies()).current.values():
            if message is not None:
                message.heard_at = worker.heard_at

    def replies_of(self, worker: AttachedWorker) -> WorkerReplies:
        """The worker's replies; of one that has detached, none, and nothing is kept for it."""
        if worker not in self._open_messages.workers:
            return WorkerReplies()
        return self._replies.setdefault(worker, WorkerReplies())

    # Opening

    def _open(self, worker: AttachedWorker, opening: OpenReply, now: float) -> None:
        check(opening)
        number = opening.reply
        if number in self.replies_of(worker):
            problem = f"{number} was used on this stream before"
            raise catalogue.INVALID_ARGUMENT.refused(field="reply", problem=problem)
        held = None
        message = Message(reply_to=opening.reply_to)
        if opening.WhichOneof("target") == "delivery_id":
            held = worker.held.get(opening.delivery_id)
            if held is None or held.settling or held.erased:
                raise catalogue.DELIVERY_NOT_HELD.refused(delivery_id=opening.delivery_id)
            if opening.reply_to:
                problem = "must be empty where delivery_id is set"
                raise catalogue.INVALID_ARGUMENT.refused(field="reply_to", problem=problem)
            said = Message.FromString(held.delivery.message)
            topic = held.delivery.topic
            message.address.CopyFrom(said.address)
            message.reply_to = said.id
        else:
            topic = _own_topic(worker, opening)
            message.address.CopyFrom(opening.address)
        message.author.role = ROLE_AGENT
        message.author.name = opening.name or topic[1]
        if opening.attributes:
            message.attributes.update(opening.attributes)
        listener = ReplyOpening(self, worker, number, held)
        self._opener.open(
            topic, message, scope="reply", key=opening.key, producer=worker.ident, listener=listener, now=now
        )
        self.replies_of(worker).current[number] = None

    def opened(
        self, worker: AttachedWorker, number: int, message: StreamedMessage, held: LeasedDelivery | None
    ) -> None:
        """The message is on disk, and this worker its producer."""
        before: AttachedWorker | None = message.owner
        if before is not None:
            self.replies_of(before).end(message.reply, EndedReply(message.id, OPEN, None))
            self._progress(before, message.reply, message, message.fenced())
        if worker not in self._open_messages.workers:
            message.owner = None
            return
        message.owner, message.reply = worker, number
        self.replies_of(worker).current[number] = message
        snapshot = message.snapshot()
        opened = worker.mail(ANSWER_BYTES + message.size).opened.add(reply=number)
        opened.message.CopyFrom(snapshot)
        # How much of what was said before is on disk.
        self._progress(worker, number, message)
        if held is not None:
            held.answered = True
            if held.cancelled:
                self._open_messages.cancel(message, None, None)

    def ended_before(
        self, worker: AttachedWorker, number: int, message: Message, held: LeasedDelivery | None
    ) -> None:
        """The key is that of a message that has ended."""
        if held is not None:
            held.answered = True
        self.replies_of(worker).end(number, EndedReply(message.id, message.state, None))
        opened = worker.mail(ANSWER_BYTES + message.ByteSize()).opened.add(reply=number)
        opened.message.CopyFrom(message)
        self._tell(worker)

    def not_opened(self, worker: AttachedWorker, number: int, reason: Refused) -> None:
        """There is no such reply."""
        current = self.replies_of(worker).current
        if current.get(number, worker) is None:
            del current[number]
        opened = worker.mail(ANSWER_BYTES).opened.add(reply=number)
        opened.error.CopyFrom(to_error(reason))
        self._tell(worker)

    # Extending

    def _extend(self, worker: AttachedWorker, added: ReplyDeltas, now: float) -> None:
        replies = self.replies_of(worker)
        message = replies.current.get(added.reply)
        if message is None:
            self._progress(worker, added.reply, None, _why_not(replies, added.reply))
            return
        expected = message.next_index
        try:
            self._open_messages.extend(message, added.deltas, worker.blocked_by, now)
        except Refused as reason:
            self._progress(worker, added.reply, message, reason)
            return
        if added.deltas and added.deltas[0].index < expected:
            self._progress(worker, added.reply, message)

    def _saved(self, message: StreamedMessage) -> None:
        if message.owner is not None:
            self._progress(message.owner, message.reply, message)

    def _progress(
        self,
        worker: AttachedWorker,
        number: int,
        message: StreamedMessage | None,
        error: Refused | None = None,
    ) -> None:
        if worker not in self._open_messages.workers:
            return
        progress = worker.mail(ANSWER_BYTES).progress.add(reply=number)
        if message is not None:
            progress.next_index = message.next_index
            progress.durable_index = message.durable_index
        if error is not None:
            progress.error.CopyFrom(to_error(error))
        self._tell(worker)

    # Ending

    def _end(self, worker: AttachedWorker, ending: EndReply) -> None:
        replies = self.replies_of(worker)
        message = replies.current.get(ending.reply)
        if message is None:
            known = replies.ended.get(ending.reply)
            if known is None or known.state == OPEN:
                raise _why_not(replies, ending.reply)
            self._tell_ended(worker, ending.reply, known.state, known.position)
            return
        check(ending)
        if ending.state == COMPLETE and ending.next_index != message.next_index:
            raise message.gap(ending.next_index)
        how = Ended(ending.state, _error(ending))
        self._open_messages.end(message, how, ReplyEnding(self, worker, ending.reply), None)

    def _ended(self, message: StreamedMessage, position: Position) -> None:
        """A message has ended, by whatever cause: its producer is told."""
        worker: AttachedWorker | None = message.owner
        if worker is not None and message.ended is not None:
            state = message.ended.state
            self.replies_of(worker).end(message.reply, EndedReply(message.id, state, position))
            self._tell_ended(worker, message.reply, state, position)

    def _tell_ended(
        self, worker: AttachedWorker, number: int, state: MessageState.ValueType, position: Position | None
    ) -> None:
        if worker not in self._open_messages.workers:
            return
        ended = worker.mail(ANSWER_BYTES).ended.add(reply=number, state=state)
        if position is not None:
            ended.position.CopyFrom(position.to_proto())
        self._tell(worker)

    def not_ended(self, worker: AttachedWorker, number: int, reason: Refused) -> None:
        """It could not be ended."""
        if worker in self._open_messages.workers:
            worker.mail(ANSWER_BYTES).ended.add(reply=number).error.CopyFrom(to_error(reason))
            self._tell(worker)

    def erased(self, topic: TopicKey) -> None:
        """The topic's log was erased, and its open messages with it."""
        for message in self._open_messages.erased(topic):
            worker: AttachedWorker | None = message.owner
            if worker is not None:
                gone = catalogue.MESSAGE_NOT_FOUND.refused(message_id=message.id)
                message.owner = None
                self.replies_of(worker).current.pop(message.reply, None)
                self.not_ended(worker, message.reply, gone)

    def _tell(self, worker: AttachedWorker) -> None:
        if worker in self._open_messages.workers:
            self._mail.add(worker)


def _own_topic(worker: AttachedWorker, opening: OpenReply) -> TopicKey:
    if not opening.HasField("address"):
        raise catalogue.INVALID_ARGUMENT.refused(field="target", problem="must be set")
    topic = topic_of(topic_address(opening.address))
    if topic[0] != worker.tenant or topic[1] not in worker.agents:
        problem = "must be a topic of one of the worker's agents"
        raise catalogue.INVALID_ARGUMENT.refused(field="address", problem=problem)
    return topic


def _why_not(replies: WorkerReplies, number: int) -> Refused:
    """Why a worker can add nothing to a reply."""
    known = replies.ended.get(number)
    if known is None:
        return catalogue.REPLY_NOT_OPENED.refused(reply=number)
    if known.state == OPEN:
        return catalogue.PRODUCER_FENCED.refused(message_id=known.message_id, producer="another worker")
    return message_ended(known.message_id, known.state)


def message_ended(message_id: str, state: MessageState.ValueType) -> Refused:
    """The refusal of an addition to what has ended."""
    name = MessageState.Name(state).removeprefix("MESSAGE_STATE_").lower()
    return catalogue.MESSAGE_ENDED.refused(message_id=message_id, state=name)


def _error(ending: EndReply) -> Error | None:
    return ending.error if ending.HasField("error") else None


class ReplyOpening:
    """Origin of a worker's open message."""

    __slots__ = ("_held", "_number", "_replies", "_worker")

    def __init__(
        self, replies: StreamedReplies, worker: AttachedWorker, number: int, held: LeasedDelivery | None
    ) -> None:
        self._replies = replies
        self._worker = worker
        self._number = number
        self._held = held

    @property
    def blocked_by(self) -> set[Link]:
        """A worker whose replies fill outboxes is read no further for now."""
        return self._worker.blocked_by

    def opened(self, message: StreamedMessage) -> None:
        """It is open."""
        self._replies.opened(self._worker, self._number, message, self._held)

    def ended(self, message: Message) -> None:
        """It has ended before."""
        self._replies.ended_before(self._worker, self._number, message, self._held)

    def refused(self, reason: Refused) -> None:
        """There is none."""
        self._replies.not_opened(self._worker, self._number, reason)


class ReplyEnding:
    """Origin of an end that a worker asked for. That it has ended, a message's producer is told anyway."""

    __slots__ = ("_number", "_replies", "_worker")

    def __init__(self, replies: StreamedReplies, worker: AttachedWorker, number: int) -> None:
        self._replies = replies
        self._worker = worker
        self._number = number

    def ended(self, state: MessageState.ValueType, position: Position | None) -> None:
        """It has ended."""

    def not_ended(self, reason: Refused) -> None:
        """It is as open as before."""
        self._replies.not_ended(self._worker, self._number, reason)
