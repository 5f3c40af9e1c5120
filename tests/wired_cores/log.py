"""The log in memory, with queries for the checks of two wired cores."""

from __future__ import annotations

from trunkline.v1.agent_service_pb2 import ReplyDeltas
from trunkline.v1.message_pb2 import CHANGE_KIND_ENDED, Message
from trunkline_router.core.values.log_records import EntryKind
from trunkline_router.core.values.topics import TopicKey

from tests.support import memory_log


class MemoryLog(memory_log.MemoryLog):
    """The log of both cores' world."""

    def epoch(self, topic: TopicKey) -> str:
        """Return the epoch of a topic's log, which is never erased here."""
        return self.head(topic).epoch

    def entry(self, topic: TopicKey, seq: int) -> Message | None:
        """Return the message at a position in its current form; None for any other entry."""
        kind, body = self.logs[topic][1][seq - 1]
        return Message.FromString(body) if kind is EntryKind.MESSAGE else None

    def messages(self, topic: TopicKey) -> list[Message]:
        """Return all messages of a log in their current form."""
        entries = self.logs.get(topic, ("", []))[1]
        return [Message.FromString(body) for kind, body in entries if kind is EntryKind.MESSAGE]

    def ends(self) -> list[tuple[str, int, int]]:
        """Return all ends of messages: the message, its state, and the position of the end."""
        changes = [change for topic in self.logs for change in self.changes(topic)]
        return [(c.message_id, c.state, c.position.seq) for c in changes if c.kind == CHANGE_KIND_ENDED]

    def saved(self, message_id: str) -> int:
        """Return the number of an open message's deltas on disk."""
        return sum(len(ReplyDeltas.FromString(deltas).deltas) for deltas in self.open[message_id].deltas)
