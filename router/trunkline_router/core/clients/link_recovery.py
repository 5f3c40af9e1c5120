"""Recovery of an edge's subscriptions after its link was down."""

from __future__ import annotations

from functools import partial

from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import ServerFrame

from trunkline_router.core.clients.replay import replay
from trunkline_router.core.clients.subscribing import RECOVERY_MAX_BYTES, RECOVERY_MAX_MESSAGES
from trunkline_router.core.commits.effects import Effects, ReadPages
from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.directory.connections import ConnectedClient, Link, LinkSubscription, Topic
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.directory.recovery import LinkCatchup
from trunkline_router.core.replies.open_messages import OpenMessages
from trunkline_router.core.values.log_records import Entry, Page, PageRequest
from trunkline_router.core.values.topics import Position


class LinkRecovery:
    """Subscribes restored connections at once and replays to their link what it missed."""

    def __init__(
        self, directory: Directory, open_messages: OpenMessages, outbox: ClientOutbox, effects: Effects
    ) -> None:
        self._directory = directory
        self._open_messages = open_messages
        self._outbox = outbox
        self._effects = effects

    def restored(self, connection: ConnectedClient, topics: list[Topic]) -> None:
        """The connection was accepted on an earlier link: subscribe it and catch up.

        Closes it with POSITION_LOST if the edge named no position for one of its topics.
        """
        numbers = []
        has_positions = True
        for topic in topics:
            subscription = self._directory.subscribe(connection, topic)
            connection.topics.append(topic)
            numbers.append(subscription.number)
            after = connection.link.resume_positions.pop(topic.key, None)
            if after is not None:
                subscription.is_restored = True
                if after != topic.position:
                    self._catch_up(topic, subscription, after)
                else:
                    self._replay(topic, subscription, [])
            has_positions = has_positions and subscription.is_restored
        join = connection.link.outbox.add().join
        join.connection = connection.number
        join.topics.extend(numbers)
        self._effects.writable_peers.add(connection.link)
        if not has_positions:
            self._outbox.close(connection, catalogue.POSITION_LOST.refused())

    def log_forked(self, topic: Topic) -> None:
        """A log has lost entries: close its subscribers, as none can tell whether it received other ones."""
        for subscription in list(topic.links):
            self._lose(topic, subscription.link)
            self._effects.writable_peers.add(subscription.link)

    def _catch_up(self, topic: Topic, subscription: LinkSubscription, after: Position) -> None:
        catchup = subscription.catchup = LinkCatchup(after)
        topic.catchups = [*(topic.catchups or ()), catchup]
        request = PageRequest(topic.key, RECOVERY_MAX_MESSAGES, after, None, RECOVERY_MAX_BYTES)

        def read(pages: list[Page]) -> None:
            if topic.position is None:
                # Commits that are not yet reported must not be delivered twice; see SubscribeOperation.
                self._effects.commit_queue.after_commit(partial(merge, pages[0]))
            else:
                merge(pages[0])

        def merge(page: Page) -> None:
            if topic.position is None:
                topic.position = page.head
            self._effects.commit_queue.fork(topic.key, topic.position, after, is_proved=True)
            catchup.merge(page, topic.position)
            self._caught_up(topic, subscription, catchup)

        def failed() -> None:
            self._caught_up(topic, subscription, catchup)

        self._effects.reads.append(ReadPages([request], read, failed))

    def _caught_up(self, topic: Topic, subscription: LinkSubscription, catchup: LinkCatchup) -> None:
        subscription.catchup = None
        topic.catchups = [c for c in topic.catchups or () if c is not catchup] or None
        link = subscription.link
        if catchup.missed is None and topic.subscription_on(link) is subscription:
            self._lose(topic, link)
        elif catchup.missed is not None:
            self._replay(topic, subscription, catchup.missed)
        self._effects.writable_peers.add(link)
        for waiter in catchup.waiters:
            waiter()

    def _replay(self, topic: Topic, subscription: LinkSubscription, missed: list[Entry]) -> None:
        outbox = subscription.link.outbox

        def add_frame(size: int) -> ServerFrame:
            publish = outbox.add(size).publish
            publish.topic = subscription.number
            publish.replayed = True
            return publish.frame

        replay(self._open_messages, topic.key, missed, add_frame)

    def _lose(self, topic: Topic, link: Link) -> None:
        """Close the link's subscribers of a topic, and unsubscribe them: their position is of no use."""
        for connection in [c for c in link.connections.values() if topic in c.topics]:
            self._outbox.close(connection, catalogue.POSITION_LOST.refused())
            connection.topics.remove(topic)
            self._directory.unsubscribe(connection, topic)
            self._directory.release_topic(topic)
