"""A log in memory, for tests in which two cores are wired to each other."""

from __future__ import annotations

from collections import defaultdict
from itertools import count

from trunkline.v1.agent_service_pb2 import ReplyDeltas
from trunkline.v1.message_pb2 import CHANGE_KIND_EDITED, CHANGE_KIND_ENDED, Change, Message

from router.core.journal import (
    Draft,
    Entry,
    EntryKind,
    Page,
    PageRequest,
    StoredDelivery,
    StoredOpen,
    Transaction,
    Verdict,
    Withdrawal,
)
from router.core.topics import EMPTY, Position, TopicKey

EPOCH = "e"


class MemoryLog:
    """Commits at once, forgets nothing; receipts and dead letters are of no interest here."""

    def __init__(self) -> None:
        self.topics: dict[TopicKey, list[tuple[EntryKind, bytes]]] = defaultdict(list)
        #: By message id.
        self.open: dict[str, StoredOpen] = {}
        self.unsettled: dict[int, StoredDelivery] = {}
        self._places: dict[str, tuple[TopicKey, int]] = {}
        #: What a key stands for: the digest, the message, and where the entry stands.
        self._keys: dict[bytes, tuple[bytes, str, int]] = {}
        self._delivery_ids = count(1)

    def head(self, topic: TopicKey) -> Position:
        """The end of a topic's log."""
        return Position(EPOCH, len(self.topics[topic])) if self.topics[topic] else EMPTY

    # Writing

    def append(self, transaction: Transaction) -> None:
        """Commit a transaction."""
        for draft in transaction.drafts:
            self._append(draft)
        for delivery_id in transaction.settled:
            self.unsettled.pop(delivery_id, None)
        for noted in transaction.attempts:
            if delivery := self.unsettled.get(noted.delivery_id):
                self.unsettled[noted.delivery_id] = delivery._replace(attempts=noted.attempts)
        for given_up in transaction.given_up:
            self.unsettled.pop(given_up.delivery_id, None)
        for withdrawal in transaction.withdrawn:
            self._withdraw(withdrawal)
        for topic, seq, producer, deltas in transaction.checkpoints:
            message_id = self.message_at(topic, seq).id
            if stored := self.open.get(message_id):
                more = [*stored.deltas, deltas] if deltas else stored.deltas
                self.open[message_id] = stored._replace(producer=producer, deltas=more)

    def _append(self, draft: Draft) -> None:
        known = self._keys.get(draft.key) if draft.key is not None else None
        if known is not None:
            digest, message_id, seq = known
            if draft.digest and draft.digest != digest:
                draft.verdict = Verdict.MISMATCH
                return
            draft.verdict = Verdict.DUPLICATE
            draft.message.id = message_id
            draft.place.epoch, draft.place.seq = EPOCH, seq
        elif draft.repeat_only:
            draft.verdict = Verdict.NO_REPEAT
        else:
            self._write(draft)

    def _write(self, draft: Draft) -> None:
        log, message = self.topics[draft.topic], draft.message
        seq = len(log) + 1
        draft.place.epoch, draft.place.seq = EPOCH, seq
        draft.verdict = Verdict.COMMITTED
        if draft.change is not None:
            draft.stored = draft.change.SerializeToString()
            log[message.position.seq - 1] = (EntryKind.MESSAGE, message.SerializeToString())
            self.open.pop(message.id, None)
        elif draft.read is not None:
            draft.stored = draft.read.SerializeToString()
        else:
            message.id = f"{draft.topic[4]}-{seq}"
            self._places[message.id] = draft.topic, seq
            draft.stored = message.SerializeToString()
            if draft.producer is not None:
                self.open[message.id] = StoredOpen(draft.topic, draft.stored, draft.producer, [])
        log.append((draft.kind, draft.stored))
        if draft.key is not None:
            self._keys[draft.key] = draft.digest, message.id, seq
        if draft.deliver:
            draft.delivery_id = next(self._delivery_ids)
            delivery = StoredDelivery(draft.delivery_id, draft.topic, draft.stored)
            self.unsettled[draft.delivery_id] = delivery

    def _withdraw(self, withdrawal: Withdrawal) -> None:
        for number, delivery in list(self.unsettled.items()):
            seq = Message.FromString(delivery.message).position.seq
            if (delivery.topic, seq) == (withdrawal.topic, withdrawal.seq):
                del self.unsettled[number]
                withdrawal.found = True

    # Reading

    def page(self, request: PageRequest) -> Page:
        """One page as of now."""
        head, after, before = self.head(request.topic), request.after, request.before
        for position in (after, before):
            if position is not None and (position.epoch not in ("", head.epoch) or position.seq > head.seq):
                return Page([], False, head, valid=False)
        entries = [Entry(seq, *entry) for seq, entry in enumerate(self.topics[request.topic], 1)]
        if request.messages_only:
            entries = [entry for entry in entries if entry.kind is EntryKind.MESSAGE]
        if after is not None:
            entries = [entry for entry in entries if entry.seq > after.seq]
            page = entries[: request.limit]
        else:
            entries = [entry for entry in entries if before is None or entry.seq < before.seq]
            page = entries[-request.limit :]
        first = page[0].seq if page else 0
        more = len(page) < len(entries)
        return Page([self._with_message(request.topic, entry, first) for entry in page], more, head)

    def _with_message(self, topic: TopicKey, entry: Entry, first: int) -> Entry:
        """See Entry."""
        if entry.kind is not EntryKind.CHANGE:
            return entry
        change = Change.FromString(entry.body)
        _, seq = self._places[change.message_id]
        if change.kind == CHANGE_KIND_EDITED or (change.kind == CHANGE_KIND_ENDED and seq < first):
            change.message.CopyFrom(self.message_at(topic, seq))
        return entry._replace(body=change.SerializeToString())

    def message_at(self, topic: TopicKey, seq: int) -> Message:
        """The message that stands there, in its present form."""
        kind, body = self.topics[topic][seq - 1]
        assert kind is EntryKind.MESSAGE
        return Message.FromString(body)

    def message(self, message_id: str) -> Message | None:
        """One message in its present form."""
        place = self._places.get(message_id)
        return None if place is None else self.message_at(*place)

    def deliveries(self, agent: str, after: int, limit: int) -> list[StoredDelivery]:
        """Unsettled deliveries of an agent above an id."""
        found = [d for d in self.unsettled.values() if d.topic[1] == agent and d.delivery_id > after]
        return found[:limit]

    # For the checks

    def entry(self, topic: TopicKey, seq: int) -> Message | None:
        """What stands there, if it is a message."""
        kind, body = self.topics[topic][seq - 1]
        return Message.FromString(body) if kind is EntryKind.MESSAGE else None

    def messages(self, topic: TopicKey) -> list[Message]:
        """All messages of a log in their present form."""
        return [Message.FromString(body) for kind, body in self.topics[topic] if kind is EntryKind.MESSAGE]

    def ends(self) -> list[tuple[str, int, int]]:
        """All ends of messages: the message, its state, and where the end stands."""
        return [
            (change.message_id, change.state, change.position.seq)
            for log in self.topics.values()
            for kind, body in log
            if kind is EntryKind.CHANGE and (change := Change.FromString(body)).kind == CHANGE_KIND_ENDED
        ]

    def saved(self, message_id: str) -> int:
        """How many deltas of an open message are on disk."""
        return sum(len(ReplyDeltas.FromString(deltas).deltas) for deltas in self.open[message_id].deltas)
