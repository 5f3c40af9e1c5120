"""The model of the log with erasure of tenants and users, and pruning."""

from __future__ import annotations

from trunkline.v1.frame_pb2 import ReadFrame
from trunkline.v1.message_pb2 import MESSAGE_STATE_RECALLED, Author, Change, Message
from trunkline_router.core.values.log_records import EntryKind, ErasedPiece, HistoryLimits
from trunkline_router.core.values.topics import PERSON, USER, TopicKey

from tests.router.log.engines import NOW_MS
from tests.router.log.model import LogModel, OneLog, Row


class ErasingModel(LogModel):
    """A LogModel that erases and prunes at once what a log does in pieces."""

    def erase_tenant(self, tenant: str) -> ErasedPiece:
        """Erase all logs of a tenant."""
        return self._erase([topic for topic in self.logs if topic[0] == tenant])

    def erase_user(self, tenant: str, user: str) -> ErasedPiece:
        """Erase a user."""
        logs = {topic: log for topic, log in self.logs.items() if topic[0] == tenant}
        receipts = sum(log.receipts.pop(user, None) is not None for log in logs.values())
        own = [topic for topic in logs if topic[3] in (PERSON, USER) and topic[4] == user]
        erased = self._erase(own)
        messages = sum(self._forget(topic, log, user) for topic, log in logs.items() if topic not in own)
        return ErasedPiece(erased.messages + messages, receipts, erased.topics)

    def _erase(self, topics: list[TopicKey]) -> ErasedPiece:
        return ErasedPiece(sum([self.reset(topic) for topic in topics]), topics=tuple(sorted(topics)))

    def _forget(self, topic: TopicKey, log: OneLog, user: str) -> int:
        seqs = [seq for seq in log.seqs() if log.rows[seq - 1].user == user and seq not in log.opens]
        for seq in seqs:
            _make_nobodys(log.rows[seq - 1])
        messages = {seq for seq in seqs if log.rows[seq - 1].kind is EntryKind.MESSAGE}
        self._drop_work(topic, messages)
        return len(messages)

    def prune(self, tenant: str, limits: HistoryLimits, now_ms: int) -> int:
        """Prune. Returns the number of messages erased."""
        gone = 0
        for topic, log in self.logs.items():
            if topic[0] == tenant:
                had = log.messages()
                log.pruned = max(log.pruned, _beyond(log, limits, now_ms, self.overhead))
                self._drop_work(topic, set(range(1, log.pruned + 1)))
                gone += had - log.messages()
        return gone

    def _drop_work(self, topic: TopicKey, seqs: set[int]) -> None:
        for work in (self.deliveries, self.dead):
            for number, one in list(work.items()):
                if one.topic == topic and one.seq in seqs:
                    del work[number]


def _beyond(log: OneLog, limits: HistoryLimits, now_ms: int, overhead: int) -> int:
    """The number of entries to prune: all up to the first that is within every limit."""
    beyond = log.pruned
    end = len(log.rows)
    for seq in log.seqs():
        newer = sum(len(row.body) + overhead for row in log.rows[seq - 1 :])
        if (
            (limits.max_messages and end - seq >= limits.max_messages)
            or (limits.max_age_ms and now_ms - limits.max_age_ms > NOW_MS)
            or (limits.max_bytes and newer > limits.max_bytes and seq < end)
        ):
            beyond = seq
    return min([beyond, *(seq - 1 for seq in log.opens)])


def _make_nobodys(row: Row) -> None:
    row.user = ""
    if row.kind is EntryKind.READ:
        read = ReadFrame.FromString(row.body)
        read.ClearField("user")
        row.body = read.SerializeToString()
    elif row.kind is EntryKind.CHANGE:
        change = Change.FromString(row.body)
        change.author.CopyFrom(Author(role=change.author.role))
        row.body = change.SerializeToString()
    else:
        message = Message.FromString(row.body)
        row.body = Message(
            id=message.id,
            address=message.address,
            position=message.position,
            author=Author(role=message.author.role),
            state=MESSAGE_STATE_RECALLED,
            created_at=message.created_at,
            updated_at=message.created_at,
        ).SerializeToString()
