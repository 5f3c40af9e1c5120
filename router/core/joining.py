"""A connection's way into topics: connecting, resuming, subscribing, and carrying on after a re-link.

All of it ends the same way: the ends of the topics are known, what was missed is at hand, and in one
step the connection is answered, sent what it missed, and joined, so that what is committed next
reaches it live.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import ServerFrame

from router.core.answers import Answers
from router.core.directory import Connection, Directory, Link, LinkTopic, Topic
from router.core.effects import Read, ReadHeads, ReadPages
from router.core.journal import Entry, EntryKind, Page, PageRequest
from router.core.journal_queue import JournalQueue
from router.core.open_messages import OpenMessages
from router.core.recovery import Catchup, LinkCatchup
from router.core.topics import EMPTY, Position, TopicKey

#: What a recovery may bring: beyond this a client is better off reading history.
RECOVERY_MAX_MESSAGES = 2000
RECOVERY_MAX_BYTES = 1 << 20


class Joining:
    """One connection on its way into some topics.

    `wanted` are the positions to go on from. `answered` is called once, with whether all of that is
    at hand and with the position of each topic before the first message that will follow; it puts
    the answer into the outbox. `failed` is called instead where the log cannot be read.
    """

    def __init__(
        self,
        directory: Directory,
        journal: JournalQueue,
        reads: list[Read],
        mail: set[Link],
        open_messages: OpenMessages,
        connection: Connection,
        topics: list[Topic],
        wanted: dict[TopicKey, Position],
        answered: Callable[[bool, list[Position]], None],
        failed: Callable[[], None],
    ) -> None:
        self._directory = directory
        self._journal = journal
        self._reads = reads
        self._mail = mail
        self._open_messages = open_messages
        self._connection = connection
        self._topics = topics
        self._wanted = wanted
        self._answered = answered
        self._failed = failed
        self._catchups: dict[Topic, Catchup] = {}

    def begin(self) -> None:
        """Go as far as can be gone without waiting; the rest follows when what is awaited is there."""
        unknown = [topic for topic in self._topics if topic.position is None]
        if unknown:
            keys = [topic.key for topic in unknown]
            self._reads.append(ReadHeads(keys, partial(self._heads, unknown), self._give_up))
            return
        if catchup := self._link_catchup():
            catchup.waiters.append(self.begin)
            return
        self._recover()

    def _link_catchup(self) -> LinkCatchup | None:
        for topic in self._topics:
            link_topic = topic.on(self._connection.link)
            if link_topic is not None and link_topic.catchup is not None:
                return link_topic.catchup
        return None

    def _heads(self, topics: list[Topic], heads: list[Position]) -> None:
        # What the log has committed, and the core has not been told of, would never be told live.
        self._journal.after_commit(partial(self._all_told, topics, heads))

    def _all_told(self, topics: list[Topic], heads: list[Position]) -> None:
        for topic, head in zip(topics, heads, strict=True):
            if topic.position is None:
                topic.position = head
        self.begin()

    def _recover(self) -> None:
        if not any(self._is_behind(topic) for topic in self._topics):
            self._finish()
            return
        requests = []
        # All that are to go on, also those at their end now: they may have moved on by the time of the read.
        for topic in [topic for topic in self._topics if topic.key in self._wanted]:
            after = self._wanted[topic.key]
            catchup = self._catchups[topic] = Catchup(after)
            topic.catchups = [*(topic.catchups or ()), catchup]
            requests.append(PageRequest(topic.key, RECOVERY_MAX_MESSAGES, after, None, RECOVERY_MAX_BYTES))
        link = self._connection.link
        self._reads.append(ReadPages(requests, self._pages, self._give_up, link))

    def _is_behind(self, topic: Topic) -> bool:
        wanted = self._wanted.get(topic.key)
        return wanted is not None and wanted != topic.position

    def _pages(self, pages: list[Page]) -> None:
        for (topic, catchup), page in zip(self._catchups.items(), pages, strict=True):
            catchup.read(page, topic.position or page.head)
        self._forget_catchups()
        self._finish()

    def _finish(self) -> None:
        if not self._is_alive():
            self._leave()
            return
        if catchup := self._link_catchup():
            # The link came back while the log was read; join after it, with what is new then.
            self._catchups.clear()
            catchup.waiters.append(self.begin)
            return
        missed = [catchup.missed for catchup in self._catchups.values()]
        whole = (
            None not in missed
            and sum(len(entry.body) for rows in missed for entry in rows or ()) <= RECOVERY_MAX_BYTES
        )
        known = {topic.key for topic in self._topics}
        recovered = bool(self._wanted) and whole and self._wanted.keys() <= known
        starts = [topic.position or EMPTY for topic in self._topics]
        if recovered:
            starts = [self._wanted.get(t.key, s) for t, s in zip(self._topics, starts, strict=True)]
        self._answered(recovered, starts)
        replayed = self._catchups if recovered else {}
        for topic in self._topics:
            missed_of = replayed[topic].missed if topic in replayed else None
            self._send(topic, missed_of or [])
        self._join()

    def _send(self, topic: Topic, missed: list[Entry]) -> None:
        """What was missed, and what was said so far in all messages that are open."""
        outbox, number = self._connection.link.outbox, self._connection.number
        for frame, size in told_again(self._open_messages, topic.key, missed):
            send = outbox.add(size).send
            send.connection = number
            send.frame.CopyFrom(frame)

    def _join(self) -> None:
        connection = self._connection
        numbers = []
        for topic in self._topics:
            if connection.hears(topic.key):
                self._directory.leave(topic)
                continue
            numbers.append(self._directory.join(connection, topic).number)
            connection.topics.append(topic)
        join = connection.link.outbox.add().join
        join.connection = connection.number
        join.topics.extend(numbers)
        self._mail.add(connection.link)

    def _is_alive(self) -> bool:
        connection = self._connection
        return not connection.link.lost and connection.link.connections.get(connection.number) is connection

    def _give_up(self) -> None:
        self._forget_catchups()
        if self._is_alive():
            self._failed()
        self._leave()

    def _leave(self) -> None:
        for topic in self._topics:
            self._directory.leave(topic)

    def _forget_catchups(self) -> None:
        for topic, catchup in self._catchups.items():
            if topic.catchups:
                topic.catchups = [c for c in topic.catchups if c is not catchup] or None


class Relinking:
    """Brings the listeners of topics up to date after their link was down."""

    def __init__(
        self,
        directory: Directory,
        journal: JournalQueue,
        reads: list[Read],
        mail: set[Link],
        open_messages: OpenMessages,
        answers: Answers,
    ) -> None:
        self._directory = directory
        self._journal = journal
        self._open_messages = open_messages
        self._reads = reads
        self._mail = mail
        self._answers = answers

    def restored(self, connection: Connection, topics: list[Topic]) -> None:
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

    def _catch_up(self, topic: Topic, link_topic: LinkTopic, after: Position) -> None:
        catchup = link_topic.catchup = LinkCatchup(after)
        topic.catchups = [*(topic.catchups or ()), catchup]
        request = PageRequest(topic.key, RECOVERY_MAX_MESSAGES, after, None, RECOVERY_MAX_BYTES)

        def read(pages: list[Page]) -> None:
            if topic.position is None:
                # See Joining.
                self._journal.after_commit(partial(told, pages[0]))
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

    def _caught_up(self, topic: Topic, link_topic: LinkTopic, catchup: LinkCatchup) -> None:
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

    def _replay(self, topic: Topic, link_topic: LinkTopic, missed: list[Entry]) -> None:
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


def told_again(
    open_messages: OpenMessages, topic: TopicKey, missed: list[Entry]
) -> Iterator[tuple[ServerFrame, int]]:
    """The frames that bring a listener up to date, in order, each with its size.

    The entries that were missed; of messages that are open all that was said so far, also where they
    were not missed, as only some of it may be known.
    """
    told = set()
    for entry in missed:
        frame = ServerFrame()
        snapshot = open_messages.present(topic, entry.seq) if entry.kind is EntryKind.MESSAGE else None
        if snapshot is not None:
            told.add(entry.seq)
            frame.message.CopyFrom(snapshot)
        else:
            getattr(frame, entry.kind.frame_field).MergeFromString(entry.body)
        yield frame, len(entry.body) if snapshot is None else snapshot.ByteSize()
    for message in open_messages.of(topic):
        if message.seq not in told:
            yield ServerFrame(message=message.snapshot()), message.size
