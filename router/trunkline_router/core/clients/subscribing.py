"""A connection's way into topics: connecting, resuming, subscribing.

All of it ends the same way: the ends of the topics are known, what was missed is at hand, and in one
step the connection is answered, sent what it missed, and joined, so that what is committed next
reaches it live.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from trunkline.v1.frame_pb2 import ServerFrame

from trunkline_router.core.commits.commit_queue import CommitQueue
from trunkline_router.core.commits.effects import Read, ReadHeads, ReadPages
from trunkline_router.core.directory.connections import ConnectedClient, Link, Topic
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.directory.recovery import Catchup, LinkCatchup
from trunkline_router.core.replies.open_messages import OpenMessages
from trunkline_router.core.values.log_records import Entry, EntryKind, Page, PageRequest
from trunkline_router.core.values.topics import EMPTY, Position, TopicKey

#: What a recovery may bring: beyond this a client is better off reading history.
RECOVERY_MAX_MESSAGES = 2000
RECOVERY_MAX_BYTES = 1 << 20


class SubscribeOperation:
    """One connection on its way into some topics.

    `wanted` are the positions to go on from. `answered` is called once, with whether all of that is
    at hand and with the position of each topic before the first message that will follow; it puts
    the answer into the outbox. `failed` is called instead where the log cannot be read, or later, where
    that is found out half-way. What is too much to be told at once is, `in_pages`, told in several
    pieces; otherwise there is no recovery then.
    """

    def __init__(
        self,
        directory: Directory,
        commit_queue: CommitQueue,
        reads: list[Read],
        mail: set[Link],
        open_messages: OpenMessages,
        connection: ConnectedClient,
        topics: list[Topic],
        wanted: dict[TopicKey, Position],
        answered: Callable[[bool, list[Position]], None],
        failed: Callable[[], None],
        *,
        in_pages: bool = False,
    ) -> None:
        self._directory = directory
        self._commit_queue = commit_queue
        self._reads = reads
        self._mail = mail
        self._open_messages = open_messages
        self._connection = connection
        self._topics = topics
        self._wanted = wanted
        self._answered = answered
        self._failed = failed
        self._in_pages = in_pages
        self._has_answered = False
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
        self._commit_queue.after_commit(partial(self._all_told, topics, heads))

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
            told = topic.position or page.head
            catchup.read(page, told)
            if self._in_pages and not self._has_answered:
                self._pass_over_pruned(topic.key, page, told)
        self._forget_catchups()
        self._finish()

    def _pass_over_pruned(self, key: TopicKey, page: Page, told: Position) -> None:
        """Who takes what there is goes on from before the first entry that is there."""
        first = page.entries[0].seq if page.entries else told.seq + 1
        if page.valid and page.head.epoch == told.epoch and first > self._wanted[key].seq + 1:
            self._wanted[key] = Position(told.epoch, min(first - 1, told.seq))

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
        if not recovered and self._in_pages and self._is_of_these_logs():
            self._catchups.clear()
            self._answer(True)
            self._read_on([topic for topic in self._topics if topic.key in self._wanted])
        else:
            self._conclude(recovered)

    def _conclude(self, recovered: bool) -> None:
        if self._has_answered and not recovered:
            self._give_up()
            return
        self._answer(recovered)
        replayed = self._catchups if recovered else {}
        for topic in self._topics:
            missed_of = replayed[topic].missed if topic in replayed else None
            self._send(topic, missed_of or [])
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
        """What is wanted are positions in the logs as they are now."""
        heads = {topic.key: topic.position or EMPTY for topic in self._topics}
        for key, wanted in self._wanted.items():
            head = heads.get(key)
            if head is None or wanted.seq > head.seq or (wanted.seq and wanted.epoch != head.epoch):
                return False
        return True

    def _read_on(self, topics: list[Topic]) -> None:
        """Tell what was missed of these topics page by page; what is new after that is little."""
        if not topics:
            self.begin()
            return
        request = PageRequest(
            topics[0].key, RECOVERY_MAX_MESSAGES, self._wanted[topics[0].key], None, RECOVERY_MAX_BYTES
        )
        read = partial(self._page, topics)
        self._reads.append(ReadPages([request], read, self._give_up, self._connection.link))

    def _page(self, topics: list[Topic], pages: list[Page]) -> None:
        topic, page = topics[0], pages[0]
        if not self._is_alive():
            self._leave()
            return
        told = topic.position or page.head
        if not page.valid or page.head.epoch != told.epoch:
            # What was begun cannot be ended; the client is to come again.
            self._give_up()
            return
        # What the log has committed and the core has not been told of is told live.
        missed = [entry for entry in page.entries if entry.seq <= told.seq]
        if (missed[0].seq if missed else told.seq + 1) != self._wanted[topic.key].seq + 1:
            # Pruned meanwhile.
            self._give_up()
            return
        self._tell(told_again(self._open_messages, topic.key, missed, all_open=False))
        if missed:
            self._wanted[topic.key] = Position(told.epoch, missed[-1].seq)
        self._mail.add(self._connection.link)
        self._read_on(topics if page.more and missed else topics[1:])

    def _send(self, topic: Topic, missed: list[Entry]) -> None:
        """What was missed, and what was said so far in all messages that are open."""
        self._tell(told_again(self._open_messages, topic.key, missed))

    def _tell(self, frames: Iterator[tuple[ServerFrame, int]]) -> None:
        outbox, number = self._connection.link.outbox, self._connection.number
        for frame, size in frames:
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


def told_again(
    open_messages: OpenMessages, topic: TopicKey, missed: list[Entry], *, all_open: bool = True
) -> Iterator[tuple[ServerFrame, int]]:
    """The frames that bring a listener up to date, in order, each with its size.

    The entries that were missed; of messages that are open all that was said so far, also (`all_open`)
    where they were not missed, as only some of it may be known.
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
    for message in open_messages.of(topic) if all_open else ():
        if message.seq not in told:
            yield ServerFrame(message=message.snapshot()), message.size
