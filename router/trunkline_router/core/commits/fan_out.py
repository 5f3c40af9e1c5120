"""Fan-out: one entry per link for each message, however many connections listen there."""

from __future__ import annotations

from collections.abc import Iterable

from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import TopicFrame
from trunkline.v1.message_pb2 import Delta

from trunkline_router.core.commits.effects import CommitListener
from trunkline_router.core.directory.backpressure import LinkBackpressure
from trunkline_router.core.directory.connections import ConnectedClient, Link, LinkSubscription
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.values.log_records import PendingEntry
from trunkline_router.core.values.topics import TopicKey


class FanOut:
    """Adds frames of topics to the outboxes of the links that listen to them."""

    __slots__ = ("_backpressure", "_directory")

    def __init__(self, directory: Directory, backpressure: LinkBackpressure) -> None:
        self._directory = directory
        self._backpressure = backpressure

    def add(
        self,
        key: TopicKey,
        size: int,
        source: CommitListener,
        *,
        logged: bool = False,
        for_later: bool = False,
    ) -> list[TopicFrame]:
        """Add an entry of about `size` bytes for each link with listeners; the caller fills in the frames.

        It must do so before anything else happens. Entries of the log (`logged`) skip links that are catching
        up, which buffer them. A link whose only listener is the author gets none, unless the edge keeps the
        frame for listeners that come later (`for_later`).
        """
        topic = self._directory.topics.get(key)
        if topic is None:
            return []
        entries = []
        author = source.connection
        skipped = self._directory.sole_subscription(author, topic) if author and not for_later else None
        for subscription in topic.links:
            link = subscription.link
            if subscription is skipped or link.is_lost or (logged and subscription.catchup is not None):
                continue
            publish = link.outbox.add(size).publish
            publish.topic = subscription.number
            if author is not None and author.link is link and not (logged and author.echo):
                setattr(publish, "except", author.number)
            entries.append(publish)
            self._backpressure.added(link, source.blocked_by)
        return entries

    def add_delta(
        self, subscriptions: Iterable[LinkSubscription], message_id: str, delta: Delta, blocked_by: set[Link]
    ) -> None:
        """Add a delta for each link, merged into the one before it if that still waits."""
        kind = delta.WhichOneof("content")
        size = delta.ByteSize()
        for subscription in subscriptions:
            link = subscription.link
            if link.is_lost or subscription.catchup is not None:
                continue
            outbox = link.outbox
            is_mergeable = kind == "text" and subscription.generation == outbox.generation
            if is_mergeable and subscription.delta is not None:
                waiting = subscription.delta.frame.delta
                is_next = waiting.message_id == message_id and waiting.HasField("text")
                if is_next and outbox.extend_entry(size):
                    waiting.text += delta.text
                    subscription.delta.deltas += 1
                    continue
            publish = outbox.add_delta(size + len(message_id)).publish
            publish.topic = subscription.number
            publish.deltas = 1
            frame = publish.frame.delta
            frame.message_id = message_id
            frame.index = delta.index
            if kind == "text":
                frame.text = delta.text
            elif kind == "reasoning":
                frame.reasoning = delta.reasoning
            else:
                frame.part.CopyFrom(delta.part)
            subscription.delta, subscription.generation = publish, outbox.generation
            self._backpressure.added(link, blocked_by)


class NoticeSource:
    """Source of the router's own notices, which are not logged; implements CommitListener."""

    __slots__ = ("blocked_by",)

    connection: ConnectedClient | None = None

    def __init__(self, blocked_by: set[Link]) -> None:
        self.blocked_by = blocked_by

    def committed(self, pending: PendingEntry) -> None:
        """Nothing is committed for a notice."""

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """Nothing is committed for a notice."""
