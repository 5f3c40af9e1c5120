"""Topics on an edge whose link was down, on their way back to live."""

from __future__ import annotations

from functools import partial

from trunkline.v1 import catalogue

from trunkline_router.core.clients.subscribing import (
    RECOVERY_MAX_BYTES,
    RECOVERY_MAX_MESSAGES,
    told_again,
)
from trunkline_router.core.commits.commit_queue import CommitQueue
from trunkline_router.core.commits.effects import Read, ReadPages
from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.directory.connections import ConnectedClient, Link, LinkSubscription, Topic
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.directory.recovery import LinkCatchup
from trunkline_router.core.replies.open_messages import OpenMessages
from trunkline_router.core.values.log_records import Entry, Page, PageRequest
from trunkline_router.core.values.topics import Position


class LinkRecovery:
    """Brings the listeners of topics up to date after their link was down."""

    def __init__(
        self,
        directory: Directory,
        commit_queue: CommitQueue,
        reads: list[Read],
        mail: set[Link],
        open_messages: OpenMessages,
        answers: ClientOutbox,
    ) -> None:
        self._directory = directory
        self._commit_queue = commit_queue
        self._open_messages = open_messages
        self._reads = reads
        self._mail = mail
        self._answers = answers

    def restored(self, connection: ConnectedClient, topics: list[Topic]) -> None:
        """The connection was accepted on an earlier link: it joins as it is, and catches up there."""
        numbers = []
        has_place = True
        for topic in topics:
            link_topic = self._directory.join(connection, topic)
            connection.topics.append(topic)
            numbers.append(link_topic.number)
            after = connection.link.restoring.pop(topic.key, None)
            if after is not None:
                link_topic.is_restored = True
                if after != topic.position:
                    self._catch_up(topic, link_topic, after)
                else:
                    self._replay(topic, link_topic, [])
            has_place = has_place and link_topic.is_restored
        join = connection.link.outbox.add().join
        join.connection = connection.number
        join.topics.extend(numbers)
        self._mail.add(connection.link)
        if not has_place:
            self._answers.close(connection, catalogue.POSITION_LOST.refused())

    def _catch_up(self, topic: Topic, link_topic: LinkSubscription, after: Position) -> None:
        catchup = link_topic.catchup = LinkCatchup(after)
        topic.catchups = [*(topic.catchups or ()), catchup]
        request = PageRequest(topic.key, RECOVERY_MAX_MESSAGES, after, None, RECOVERY_MAX_BYTES)

        def read(pages: list[Page]) -> None:
            if topic.position is None:
                # See Joining.
                self._commit_queue.after_commit(partial(told, pages[0]))
            else:
                told(pages[0])

        def told(page: Page) -> None:
            if topic.position is None:
                topic.position = page.head
            catchup.read(page, topic.position)
            self._caught_up(topic, link_topic, catchup)

        def failed() -> None:
            self._caught_up(topic, link_topic, catchup)

        self._reads.append(ReadPages([request], read, failed))

    def _caught_up(self, topic: Topic, link_topic: LinkSubscription, catchup: LinkCatchup) -> None:
        link_topic.catchup = None
        topic.catchups = [c for c in topic.catchups or () if c is not catchup] or None
        link = link_topic.link
        if catchup.missed is None and topic.on(link) is link_topic:
            self._lost(topic, link)
        elif catchup.missed is not None:
            self._replay(topic, link_topic, catchup.missed)
        self._mail.add(link)
        for waiter in catchup.waiters:
            waiter()

    def _replay(self, topic: Topic, link_topic: LinkSubscription, missed: list[Entry]) -> None:
        for frame, size in told_again(self._open_messages, topic.key, missed):
            publish = link_topic.link.outbox.add(size).publish
            publish.topic = link_topic.number
            publish.replayed = True
            publish.frame.CopyFrom(frame)

    def _lost(self, topic: Topic, link: Link) -> None:
        """Close those that hear the topic on a link. It is forgotten there, as its place is of no use."""
        for connection in [c for c in link.connections.values() if topic in c.topics]:
            self._answers.close(connection, catalogue.POSITION_LOST.refused())
            connection.topics.remove(topic)
            self._directory.part(connection, topic)
            self._directory.leave(topic)
