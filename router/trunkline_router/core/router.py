"""The router's core: one object that takes events and holds the effects.

A shell calls it from one thread, never from within a callback of its own. After each call it does
what has gathered: `mail` (peers with something to be written), `reads` (of the log), `commit_queue`
(entries to be committed). Nothing here waits, and nothing here knows the time but by `now`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from math import inf

from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import AttachRequest
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import EdgeEntry, LinkHello, LinkRequest
from trunkline.v1.tenant_pb2 import TenantLimits
from trunkline_runtime.contract_version import check_peer_version

from trunkline_router.core.agents.dispatcher import Dispatcher
from trunkline_router.core.agents.worker import AttachedWorker
from trunkline_router.core.clients.cancellation import Cancellations
from trunkline_router.core.clients.edits import Edits
from trunkline_router.core.clients.frame_dispatcher import FrameDispatcher
from trunkline_router.core.clients.lifecycle import ClientLifecycle
from trunkline_router.core.clients.link_recovery import LinkRecovery
from trunkline_router.core.clients.receipts import Receipts
from trunkline_router.core.clients.subscribing import SubscribeOperation
from trunkline_router.core.clients.token_updates import TokenUpdates
from trunkline_router.core.commits.commit_queue import AtomicWrite, CommitQueue
from trunkline_router.core.commits.effects import Read
from trunkline_router.core.commits.publishing import PublishPipeline
from trunkline_router.core.directory.backpressure import Backpressure
from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.directory.connections import Link
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.directory.link_outbox import LinkOutbox
from trunkline_router.core.directory.presence import Presence, Watcher
from trunkline_router.core.directory.tenant_table import TenantTable
from trunkline_router.core.replies.open_messages import OpenMessages
from trunkline_router.core.replies.open_operation import MessageOpener
from trunkline_router.core.replies.stream_rate_limit import StreamRateLimiter
from trunkline_router.core.replies.streamed_replies import StreamedReplies
from trunkline_router.core.tenants.api_keys import ApiKeys
from trunkline_router.core.validation.validator import check
from trunkline_router.core.values.log_records import PendingEntry, Transaction
from trunkline_router.core.values.topics import EMPTY, Position, TopicKey, topic_of

Peer = Link | AttachedWorker | Watcher


class RouterCore:
    """Links, clients, workers and backends of one router.

    `window` is how many batches an edge may have under way. A reply's `lease_s` is how long its worker
    may be gone, and `checkpoint_bytes` how much of it is kept in memory only; `checkpoint` is to be
    called from time to time to have the rest written. `defaults` are the limits of tenants for which none
    were set; there are no tenants but those that `tenancy` is told of. `peek` tells the end of a log where
    that is known without I/O, and nothing that the core was not told; `new_id` makes names that are unique
    for ever; `now_ms` is the wall clock for messages that are not kept.
    """

    def __init__(
        self,
        defaults: TenantLimits,
        *,
        window: int,
        lease_s: float,
        delivery_lease_s: float,
        reply_lease_s: float,
        max_attempts: int,
        max_open_bytes: int,
        checkpoint_bytes: int,
        outbox_max_bytes: int,
        peek: Callable[[TopicKey], Position | None],
        new_id: Callable[[], str],
        now_ms: Callable[[], int],
    ) -> None:
        self.window = window
        self.lease_s = lease_s
        self.delivery_lease_s = delivery_lease_s
        self.reply_lease_s = reply_lease_s
        self._outbox_max_bytes = outbox_max_bytes
        #: Peers that something waits for; the shell writes it and takes them out.
        self.mail: set[Peer] = set()
        #: What is to be read from the log; the shell reads it and takes it out.
        self.reads: list[Read] = []
        self.commit_queue = CommitQueue()
        #: Links to which credit is to be returned once they may send more.
        self._withholding: set[Link] = set()
        self.directory = Directory()
        mail: set[Link] = self.mail  # type: ignore[assignment]
        worker_mail: set[AttachedWorker] = self.mail  # type: ignore[assignment]
        watcher_mail: set[Watcher] = self.mail  # type: ignore[assignment]
        workers: set[AttachedWorker] = set()
        self.agents = Dispatcher(
            self.directory,
            self.commit_queue,
            self.reads,
            worker_mail,
            lease_s=delivery_lease_s,
            max_attempts=max_attempts,
            workers=workers,
        )
        self._backpressure = Backpressure(mail)
        self.publishing = PublishPipeline(
            self.directory, self.commit_queue, self._backpressure, self.agents, new_id, now_ms
        )
        self.presence = Presence(self.directory, watcher_mail)
        self.answers = ClientOutbox(self.directory, self._backpressure)
        self.api_keys = ApiKeys()
        self.pacing = StreamRateLimiter(self.directory)
        self.tenancy = TenantTable(self.directory, self.answers, mail, defaults)
        self._granting = TokenUpdates(self.directory, self.presence, self.answers)
        self.open_messages = OpenMessages(
            self.directory,
            self.commit_queue,
            self.publishing,
            self.reads,
            lease_s=reply_lease_s,
            checkpoint_bytes=checkpoint_bytes,
            max_bytes=max_open_bytes,
            workers=workers,
        )
        self.opener = MessageOpener(self.directory, self.commit_queue, self.open_messages)
        self.replies = StreamedReplies(self.open_messages, self.opener, worker_mail)
        self.agents.abandoned = self.open_messages.give_up
        self.changing = Edits(self.commit_queue, self.reads, self.agents)
        join = partial(
            SubscribeOperation, self.directory, self.commit_queue, self.reads, mail, self.open_messages
        )
        relinking = LinkRecovery(
            self.directory, self.commit_queue, self.reads, mail, self.open_messages, self.answers
        )
        self.receipts = receipts = Receipts(self.commit_queue, self.reads, self.publishing, self.answers)
        self.clients = ClientLifecycle(
            self.directory, self.presence, self.answers, receipts, join, relinking, peek, mail
        )
        self.requests = FrameDispatcher(
            self.directory,
            self.commit_queue,
            self.publishing,
            self.presence,
            self.answers,
            self.open_messages,
            Cancellations(self.commit_queue, self.open_messages, self.agents, self.answers),
            self.changing,
            receipts,
            self._granting,
            self.reads,
            join,
            peek,
        )

    # Links

    def linked(self, hello: LinkHello, now: float) -> tuple[Link, Link | None]:
        """An edge says hello. Returns its link, and the one before it whose stream is to end.

        The edge's earlier connections are forgotten; it makes known those that it still has.
        Raises Refused where the two cannot work together.
        """
        check(hello)
        check_peer_version(hello.contract_minor)
        before = self.directory.links.get(hello.edge_id)
        if before is not None:
            self._forget(before)
        link = Link(hello.edge_id, hello.boot_id, LinkOutbox(self._outbox_max_bytes, self.window), now)
        link.allowed = self.window
        self.directory.links[hello.edge_id] = link
        self.tenancy.begin(link)
        return link, before

    def link_received(self, link: Link, batch: LinkRequest, now: float) -> None:
        """A batch came over a link. Raises Refused CREDIT_EXCEEDED where it was not granted.

        What still comes over a link that was given up is dropped: its connections are not the router's.
        """
        if link.lost:
            return
        link.heard_at = now
        link.outbox.credit += batch.credit
        if batch.entries:
            if not link.allowed:
                raise catalogue.CREDIT_EXCEEDED.refused()
            link.allowed -= 1
            link.withheld += 1
            self._withholding.add(link)
        if batch.credit and link.outbox.is_ready:
            self.mail.add(link)
        requests = self.requests
        for entry in batch.entries:
            if entry.HasField("frame"):
                requests.received(link, entry.frame.connection, entry.frame.frame, now)
            else:
                self._client_changed(link, entry)

    def _client_changed(self, link: Link, entry: EdgeEntry) -> None:
        kind = entry.WhichOneof("entry")
        if kind == "opened":
            self.clients.opened(link, entry.opened)
        elif kind == "closed":
            self.clients.closed(link, entry.closed.connection)
        elif kind == "granted":
            self._granting.granted(link, entry.granted)
        elif kind == "topic":
            position = Position(entry.topic.position.epoch, entry.topic.position.seq)
            link.restoring[topic_of(entry.topic.address)] = position

    def link_drained(self, link: Link) -> bool:
        """A batch was written to the link. Returns whether that unblocks any source."""
        unblocks = self._backpressure.drained(link)
        if unblocks:
            self.agents.unblocked()
        return unblocks

    def link_lost(self, link: Link) -> None:
        """The stream ended. The connections are kept for a lease, as the edge may link again."""
        link.lose()
        self.mail.discard(link)
        self.link_drained(link)

    def _forget(self, link: Link) -> None:
        link.lose()
        self.link_drained(link)
        if self.directory.links.get(link.edge_id) is link:
            del self.directory.links[link.edge_id]
        for number in list(link.connections):
            self.clients.closed(link, number)
        self.mail.discard(link)

    # Workers

    def worker_received(self, worker: AttachedWorker, batch: AttachRequest, now: float) -> None:
        """A worker sent a batch."""
        self.replies.received(worker, batch, now)
        self.agents.received(worker, batch, now)

    def worker_detached(self, worker: AttachedWorker) -> None:
        """A worker's stream ended."""
        self.replies.detached(worker)
        self.agents.detached(worker)

    # Commits

    def committed(self, transaction: Transaction, writes: list[AtomicWrite]) -> None:
        """The log has committed a transaction that was taken from the commit queue."""
        self.publishing.committed(transaction.entries)
        for write in writes:
            write.listener.done()
        self.commit_queue.dealt_with()

    def not_committed(self, transaction: Transaction, writes: list[AtomicWrite]) -> None:
        """Nothing of a transaction was committed."""
        reason = catalogue.LOG_UNAVAILABLE.refused()
        for pending in transaction.entries:
            pending.listener.refused(pending, reason)
        for write in writes:
            write.listener.failed(reason)
        self.commit_queue.dealt_with()

    def reset(self, topic: TopicKey) -> None:
        """A topic's log was erased. To be called before anything else is committed."""
        self.agents.erased(topic)
        self.replies.erased(topic)
        self.changing.erased()
        for pending in self.commit_queue.erased(topic):
            if pending.read is not None:
                gone = catalogue.CURSOR_MISMATCH.refused()
            else:
                gone = catalogue.MESSAGE_NOT_FOUND.refused(message_id=pending.message.id)
            pending.listener.refused(pending, gone)
        if known := self.directory.topics.get(topic):
            known.position = EMPTY
            for catchup in known.catchups or ():
                catchup.lose()

    def tenant_erased(self, tenant: str, topics: Iterable[TopicKey]) -> None:
        """Logs of a tenant that takes no part any longer were erased; to be called like `reset`.

        What still waited to be committed for it is refused.
        """
        gone = catalogue.UNKNOWN_TENANT.refused(tenant=tenant)
        self._refuse(self.commit_queue.take_out(tenant), gone)
        for topic in topics:
            self.reset(topic)
        self.agents.tenant_erased(tenant)

    def user_erased(self, tenant: str, user: str, topics: Iterable[TopicKey]) -> None:
        """What a user has said was erased, and these logs as a whole; to be called like `reset`."""
        self.changing.erased()
        gone = catalogue.MESSAGE_NOT_FOUND.refused(message_id=f"by {user} any longer")
        self._refuse(self.commit_queue.take_out(tenant, changes_by=user), gone)
        for topic in topics:
            self.reset(topic)
        self.agents.user_erased(tenant, user)
        self.receipts.user_erased(tenant, user)

    def _refuse(self, taken: tuple[list[PendingEntry], list[AtomicWrite]], reason: Refused) -> None:
        entries, writes = taken
        for pending in entries:
            pending.listener.refused(pending, reason)
        for write in writes:
            write.listener.failed(reason)

    # Time

    def settle(self, now: float) -> None:
        """Hand out deliveries and return credit; to be called after every batch of events."""
        self.agents.hand_out(now)
        for link in list(self._withholding):
            if self.may_send(link.blocked_by):
                self._withholding.discard(link)
                link.allowed += link.withheld
                link.outbox.owe(link.withheld)
                link.withheld = 0
                if not link.lost:
                    self.mail.add(link)

    def tick(self, now: float) -> list[tuple[Peer, Refused]]:
        """Let leases end. Returns the peers that were silent too long, whose streams are to end."""
        silent: list[tuple[Peer, Refused]] = []
        reason = catalogue.LEASE_ENDED.refused(lease_s=round(self.lease_s))
        for link in list(self.directory.links.values()):
            if link.heard_at + self.lease_s <= now:
                if not link.lost:
                    silent.append((link, reason))
                self._forget(link)
        worker_reason = catalogue.LEASE_ENDED.refused(lease_s=round(self.delivery_lease_s))
        silent.extend((worker, worker_reason) for worker in self.agents.tick(now))
        self.open_messages.tick(now)
        return silent

    def checkpoint(self, since: float = inf) -> None:
        """Have the log told of what was added to open messages, where some of it waits since then."""
        self.open_messages.checkpoint(since)

    def may_send(self, blocked_by: set[Link]) -> bool:
        """A source may send more: the commit queue and the outboxes that it fills have room."""
        return not blocked_by and not self.commit_queue.is_full
