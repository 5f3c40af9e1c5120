"""Subscription of connections to topics: connecting, resuming and joining groups.

Every subscription ends alike: once the ends of the logs are known and the missed entries are at hand,
the connection is answered, sent what it missed and subscribed in one step, so that the next commit
reaches it live.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from trunkline.v1.frame_pb2 import ServerFrame

from trunkline_router.core.agents.reply_statuses import ReplyStatuses
from trunkline_router.core.clients.replay import replay
from trunkline_router.core.commits.effects import Effects, ReadHeads, ReadPages
from trunkline_router.core.directory.connections import ConnectedClient, Topic
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.directory.recovery import Catchup, LinkCatchup
from trunkline_router.core.replies.open_messages import OpenMessages
from trunkline_router.core.values.log_records import Page, PageRequest
from trunkline_router.core.values.topics import EMPTY, Position, TopicKey

#: Bounds of what one recovery replays; beyond them a client should read history instead.
RECOVERY_MAX_MESSAGES = 2000
RECOVERY_MAX_BYTES = 1 << 20


class Subscriptions:
    """Subscribes connections to topics."""

    def __init__(
        self, directory: Directory, open_messages: OpenMessages, statuses: ReplyStatuses, effects: Effects
    ) -> None:
        self.directory = directory
        self.open_messages = open_messages
        self.statuses = statuses
        self.effects = effects

    def subscribe(
        self,
        connection: ConnectedClient,
        topics: list[Topic],
        wanted: dict[TopicKey, Position],
        answered: Callable[[bool, list[Position]], None],
        failed: Callable[[], None],
        *,
        in_pages: bool = False,
    ) -> None:
        """Subscribe a connection to topics, which it has entered in the directory.

        `wanted` are the positions to resume from. `answered` is called once, with whether everything
        missed since then can be replayed and with the position of each topic before the first entry
        that follows; it adds the answer to the outbox. `failed` is called instead if the log cannot be
        read, or later if paging fails halfway. A recovery beyond RECOVERY_MAX_MESSAGES or
        RECOVERY_MAX_BYTES is replayed page by page if `in_pages`; otherwise there is no recovery.
        """
        SubscribeOperation(self, connection, topics, wanted, answered, failed, in_pages).begin()


class SubscribeOperation:
    """One subscription in progress; see `Subscriptions.subscribe`."""

    def __init__(
        self,
        context: Subscriptions,
        connection: ConnectedClient,
        topics: list[Topic],
        wanted: dict[TopicKey, Position],
        answered: Callable[[bool, list[Position]], None],
        failed: Callable[[], None],
        in_pages: bool,
    ) -> None:
        self._directory = context.directory
        self._open_messages = context.open_messages
        self._statuses = context.statuses
        self._effects = context.effects
        self._connection = connection
        self._topics = topics
        self._wanted = wanted
        self._answered = answered
        self._failed = failed
        self._in_pages = in_pages
        self._has_answered = False
        #: No entry is damaged in what was read.
        self._is_readable = True
        self._catchups: dict[Topic, Catchup] = {}

    def begin(self) -> None:
        """Advance as far as possible without waiting; callbacks continue from there."""
        unknown = [topic for topic in self._topics if topic.position is None]
        if unknown:
            keys = [topic.key for topic in unknown]
            self._effects.reads.append(ReadHeads(keys, partial(self._heads_read, unknown), self._fail))
            return
        if catchup := self._link_catchup():
            catchup.waiters.append(self.begin)
            return
        for topic in self._topics:
            if (wanted := self._wanted.get(topic.key)) is not None:
                self._effects.commit_queue.fork(topic.key, topic.position or EMPTY, wanted)
        self._recover()

    def _link_catchup(self) -> LinkCatchup | None:
        for topic in self._topics:
            subscription = topic.subscription_on(self._connection.link)
            if subscription is not None and subscription.catchup is not None:
                return subscription.catchup
        return None

    def _heads_read(self, topics: list[Topic], heads: list[Position]) -> None:
        # Entries that the log has committed, but has not yet reported, would never be delivered live.
        self._effects.commit_queue.after_commit(partial(self._heads_known, topics, heads))

    def _heads_known(self, topics: list[Topic], heads: list[Position]) -> None:
        for topic, head in zip(topics, heads, strict=True):
            if topic.position is None:
                topic.position = head
        self.begin()

    # Recovery in one piece

    def _recover(self) -> None:
        if not any(self._is_behind(topic) for topic in self._topics):
            self._finish()
            return
        requests = []
        # Every wanted topic, even one at its end now: it may have moved on by the time of the read.
        for topic in [topic for topic in self._topics if topic.key in self._wanted]:
            after = self._wanted[topic.key]
            catchup = self._catchups[topic] = Catchup(after)
            topic.catchups = [*(topic.catchups or ()), catchup]
            requests.append(_page_request(topic.key, after))
        link = self._connection.link
        self._effects.reads.append(ReadPages(requests, self._pages_read, self._fail, link))

    def _is_behind(self, topic: Topic) -> bool:
        wanted = self._wanted.get(topic.key)
        return wanted is not None and wanted != topic.position

    def _pages_read(self, pages: list[Page]) -> None:
        for (topic, catchup), page in zip(self._catchups.items(), pages, strict=True):
            head = topic.position or page.head
            catchup.merge(page, head)
            self._is_readable = self._is_readable and not page.damaged_seq
            if self._in_pages and not self._has_answered:
                self._skip_pruned(topic.key, page, head)
        self._forget_catchups()
        self._finish()

    def _skip_pruned(self, key: TopicKey, page: Page, head: Position) -> None:
        """Resume before the first entry that the log still has."""
        first = page.entries[0].seq if page.entries else head.seq + 1
        if page.valid and page.head.epoch == head.epoch and first > self._wanted[key].seq + 1:
            self._wanted[key] = Position(head.epoch, min(first - 1, head.seq))

    def _finish(self) -> None:
        if not self._is_alive():
            self._leave()
            return
        if catchup := self._link_catchup():
            # The link came back while the log was read; subscribe after it, with what is new then.
            self._catchups.clear()
            catchup.waiters.append(self.begin)
            return
        missed = [catchup.missed for catchup in self._catchups.values()]
        is_whole = (
            None not in missed
            and sum(len(entry.body) for rows in missed for entry in rows or ()) <= RECOVERY_MAX_BYTES
        )
        known = {topic.key for topic in self._topics}
        recovered = bool(self._wanted) and is_whole and self._wanted.keys() <= known
        if not recovered and self._in_pages and self._is_readable and self._is_of_these_logs():
            self._catchups.clear()
            self._answer(True)
            self._read_on([topic for topic in self._topics if topic.key in self._wanted])
        else:
            self._conclude(recovered)

    def _conclude(self, recovered: bool) -> None:
        if self._has_answered and not recovered:
            self._fail()
            return
        self._answer(recovered)
        catchups = self._catchups if recovered else {}
        for topic in self._topics:
            missed = catchups[topic].missed if topic in catchups else None
            replay(self._open_messages, topic.key, missed or [], self._add_frame)
            for status in self._statuses.of_topic(topic.key):
                self._add_frame(status.ByteSize()).reply_status.CopyFrom(status)
        self._join()

    def _answer(self, recovered: bool) -> None:
        if self._has_answered:
            return
        self._has_answered = True
        starts = [topic.position or EMPTY for topic in self._topics]
        if recovered:
            starts = [self._wanted.get(t.key, s) for t, s in zip(self._topics, starts, strict=True)]
        self._answered(recovered, starts)

    def _is_of_these_logs(self) -> bool:
        """Every wanted position is one of the logs as they are now."""
        heads = {topic.key: topic.position or EMPTY for topic in self._topics}
        for key, wanted in self._wanted.items():
            head = heads.get(key)
            if head is None or wanted.seq > head.seq or (wanted.seq and wanted.epoch != head.epoch):
                return False
        return True

    # Recovery page by page

    def _read_on(self, topics: list[Topic]) -> None:
        """Replay what was missed of these topics page by page; little is new after that."""
        if not topics:
            self.begin()
            return
        request = _page_request(topics[0].key, self._wanted[topics[0].key])
        done = partial(self._page_read, topics)
        self._effects.reads.append(ReadPages([request], done, self._fail, self._connection.link))

    def _page_read(self, topics: list[Topic], pages: list[Page]) -> None:
        topic, page = topics[0], pages[0]
        if not self._is_alive():
            self._leave()
            return
        head = topic.position or page.head
        if not page.valid or page.head.epoch != head.epoch:
            # The replay cannot be completed; the client must reconnect.
            self._fail()
            return
        # Entries that the log has committed, but has not yet reported, are delivered live.
        missed = [entry for entry in page.entries if entry.seq <= head.seq]
        if (missed[0].seq if missed else head.seq + 1) != self._wanted[topic.key].seq + 1:
            # Pruned meanwhile.
            self._fail()
            return
        replay(self._open_messages, topic.key, missed, self._add_frame, all_open=False)
        if missed:
            self._wanted[topic.key] = Position(head.epoch, missed[-1].seq)
        self._effects.writable_peers.add(self._connection.link)
        self._read_on(topics if page.more and missed else topics[1:])

    def _add_frame(self, size: int) -> ServerFrame:
        send = self._connection.link.outbox.add(size).send
        send.connection = self._connection.number
        return send.frame

    # Ends

    def _join(self) -> None:
        connection = self._connection
        numbers = []
        for topic in self._topics:
            if connection.subscription_to(topic.key):
                self._directory.release_topic(topic)
                continue
            numbers.append(self._directory.subscribe(connection, topic).number)
            connection.topics.append(topic)
        join = connection.link.outbox.add().join
        join.connection = connection.number
        join.topics.extend(numbers)
        self._effects.writable_peers.add(connection.link)

    def _is_alive(self) -> bool:
        connection = self._connection
        return (
            not connection.link.is_lost and connection.link.connections.get(connection.number) is connection
        )

    def _fail(self) -> None:
        self._forget_catchups()
        if self._is_alive():
            self._failed()
        self._leave()

    def _leave(self) -> None:
        for topic in self._topics:
            self._directory.release_topic(topic)

    def _forget_catchups(self) -> None:
        for topic, catchup in self._catchups.items():
            if topic.catchups:
                topic.catchups = [c for c in topic.catchups if c is not catchup] or None


def _page_request(topic: TopicKey, after: Position) -> PageRequest:
    return PageRequest(topic, RECOVERY_MAX_MESSAGES, after, None, RECOVERY_MAX_BYTES)
