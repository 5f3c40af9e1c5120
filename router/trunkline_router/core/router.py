"""The router's core: one object that receives events and gathers effects.

The runtime calls it from one thread, never from within one of its callbacks. After each event, and
before the next await, the runtime calls `flush` and performs the `effects`. The core never waits, and
knows the time only from `now`, in seconds of a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf

from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import AttachHello, AttachRequest
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import LinkHello, LinkRequest
from trunkline.v1.tenant_pb2 import TenantLimits

from trunkline_router.core.agents.agent_queues import AgentQueues
from trunkline_router.core.agents.dispatcher import Dispatcher
from trunkline_router.core.agents.reply_statuses import ReplyStatuses
from trunkline_router.core.agents.settlement import Settlements
from trunkline_router.core.agents.withdrawal import Withdrawals
from trunkline_router.core.agents.worker import AttachedWorker
from trunkline_router.core.clients.cancellation import Cancellations
from trunkline_router.core.clients.client_messages import ClientMessages
from trunkline_router.core.clients.edits import Edits
from trunkline_router.core.clients.frame_dispatcher import FrameDispatcher
from trunkline_router.core.clients.groups import Groups
from trunkline_router.core.clients.history import ClientHistory
from trunkline_router.core.clients.lifecycle import ClientLifecycle
from trunkline_router.core.clients.link_recovery import LinkRecovery
from trunkline_router.core.clients.links import Links
from trunkline_router.core.clients.receipts import Receipts
from trunkline_router.core.clients.signals import Signals
from trunkline_router.core.clients.subscribing import Subscriptions
from trunkline_router.core.clients.token_updates import TokenUpdates
from trunkline_router.core.commits.commit_queue import AtomicWrite
from trunkline_router.core.commits.delivery_policy import DeliveryPolicy
from trunkline_router.core.commits.effects import Effects
from trunkline_router.core.commits.fan_out import FanOut
from trunkline_router.core.commits.publishing import PublishPipeline
from trunkline_router.core.directory.backpressure import LinkBackpressure
from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.directory.connections import Link
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.directory.presence import Presence
from trunkline_router.core.directory.tenant_table import TenantTable
from trunkline_router.core.replies.open_messages import OpenMessages
from trunkline_router.core.replies.open_operation import MessageOpener
from trunkline_router.core.replies.stream_rate_limit import StreamRateLimiter
from trunkline_router.core.replies.streamed_replies import StreamedReplies
from trunkline_router.core.tenants.api_keys import ApiKeys
from trunkline_router.core.values.log_records import Fork, PendingEntry, Transaction
from trunkline_router.core.values.topics import EMPTY, Position, TopicKey


class RouterCore:
    """Links, clients, workers and backends of one router.

    Args:
        defaults: Limits of tenants that set none.
        window: Batches that an edge may have under way.
        lease_s: Time after which a silent link's connections are removed.
        delivery_lease_s: Time that a worker has for a delivery without extending its lease.
        reply_lease_s: Time after which an open message without its producer expires.
        max_attempts: Attempts at a delivery before it becomes a dead letter, for agents that set none.
        max_open_bytes: Bound of all open messages together.
        checkpoint_bytes: Deltas of one open message that are kept in memory only.
        outbox_max_bytes: Bound of one link's outbox.
        peek: Returns the end of a log if it is known without I/O, and never one that the core has not
            seen committed.
        new_id: Returns ids that are never reused.
        now_ms: Wall clock for messages that are not logged, and for times sent to clients.
        random: Returns numbers from 0 to 1, by which delays vary.
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
        random: Callable[[], float],
    ) -> None:
        self.window = window
        self.lease_s = lease_s
        self.delivery_lease_s = delivery_lease_s
        self.reply_lease_s = reply_lease_s

        #: What the runtime must do after an event: write to peers, read the log, commit.
        self.effects = effects = Effects()
        self.directory = directory = Directory()
        backpressure = LinkBackpressure(effects.writable_peers)
        self.client_outbox = outbox = ClientOutbox(directory, backpressure)
        self.presence = Presence(directory, effects.writable_peers)
        self.tenant_table = TenantTable(directory, outbox, effects.writable_peers, defaults)
        self.api_keys = ApiKeys()
        self.stream_limiter = StreamRateLimiter(directory)

        self.agent_queues = queues = AgentQueues(delivery_lease_s, directory.concurrency_of)
        self.tenant_table.on_changed = queues.settings_changed
        self.delivery_policy = delivery_policy = DeliveryPolicy(effects, queues.has_workers)
        fan_out = FanOut(directory, backpressure)
        self.publishing = PublishPipeline(
            directory, effects.commit_queue, fan_out, backpressure, delivery_policy, queues, new_id, now_ms
        )
        self.open_messages = open_messages = OpenMessages(
            directory,
            fan_out,
            effects,
            lease_s=reply_lease_s,
            checkpoint_bytes=checkpoint_bytes,
            max_bytes=max_open_bytes,
        )
        self._reply_statuses = statuses = ReplyStatuses(queues, fan_out)
        settlements = Settlements(
            directory,
            queues,
            statuses,
            open_messages,
            effects,
            max_attempts=max_attempts,
            now_ms=now_ms,
            random=random,
        )
        withdrawals = Withdrawals(queues, statuses, effects, open_messages.cancel_replies)
        self.dispatcher = Dispatcher(
            directory, self.tenant_table, queues, settlements, delivery_policy, effects, now_ms
        )
        self.message_opener = MessageOpener(directory, open_messages, effects)
        self.streamed_replies = StreamedReplies(open_messages, self.message_opener, effects)

        self.edits = Edits(effects, withdrawals)
        self.receipts = Receipts(fan_out, outbox, effects)
        self.signals = Signals(fan_out, directory.live_signals, outbox)
        self.client_messages = ClientMessages(self.edits, delivery_policy, outbox, effects)
        self.cancellations = Cancellations(directory, open_messages, withdrawals, outbox, effects)
        self._links = self._make_links(backpressure, peek, outbox_max_bytes)

    def _make_links(
        self,
        backpressure: LinkBackpressure,
        peek: Callable[[TopicKey], Position | None],
        outbox_max_bytes: int,
    ) -> Links:
        """Connect the parts that handle what edges and their clients send."""
        directory, presence, effects = self.directory, self.presence, self.effects
        outbox, open_messages = self.client_outbox, self.open_messages
        subscriptions = Subscriptions(directory, open_messages, self._reply_statuses, effects)
        self._link_recovery = link_recovery = LinkRecovery(directory, open_messages, outbox, effects)
        lifecycle = ClientLifecycle(
            directory,
            presence,
            outbox,
            self.receipts,
            self.signals,
            subscriptions,
            link_recovery,
            effects,
            peek,
        )
        groups = Groups(directory, presence, outbox, self.signals, subscriptions, peek)
        frame_handlers = (
            self.client_messages,
            self.signals,
            groups,
            ClientHistory(open_messages, outbox, effects),
            self.receipts,
            self.cancellations,
        )
        return Links(
            directory,
            self.tenant_table,
            lifecycle,
            FrameDispatcher(outbox, frame_handlers),
            TokenUpdates(groups, outbox),
            self.signals,
            backpressure,
            self.agent_queues,
            effects,
            window=self.window,
            lease_s=self.lease_s,
            outbox_max_bytes=outbox_max_bytes,
        )

    # Links

    def link_opened(self, hello: LinkHello, now: float) -> tuple[Link, Link | None]:
        """An edge has opened a link. Returns it and the edge's earlier link, whose stream must end.

        Raises Refused if the edge's version is not compatible.
        """
        return self._links.opened(hello, now)

    def link_received(self, link: Link, batch: LinkRequest, now: float) -> None:
        """An edge sent a batch. Raises Refused CREDIT_EXCEEDED if it had no credit for it."""
        self._links.received(link, batch, now)

    def link_drained(self, link: Link) -> bool:
        """A batch was written to a link. Returns whether that unblocks any source."""
        return self._links.drained(link)

    def link_lost(self, link: Link) -> None:
        """A link's stream ended. Its connections are kept for a lease, as the edge may link again."""
        self._links.lost(link)

    # Workers

    def worker_attached(self, hello: AttachHello, now: float) -> AttachedWorker:
        """A worker has opened a stream. Raises Refused if it may not attach.

        Write the welcome to it, then call `worker_welcomed`: until then it gets no deliveries.
        """
        return self.dispatcher.attached(hello, now)

    def worker_welcomed(self, worker: AttachedWorker) -> None:
        """The welcome was written to a worker, which may get deliveries now."""
        self.dispatcher.welcomed(worker)

    def worker_received(self, worker: AttachedWorker, batch: AttachRequest, now: float) -> None:
        """A worker sent a batch."""
        self.streamed_replies.received(worker, batch, now)
        self.dispatcher.received(worker, batch, now)

    def worker_detached(self, worker: AttachedWorker, now: float) -> None:
        """A worker's stream ended."""
        self.streamed_replies.detached(worker)
        self.dispatcher.detached(worker, now)

    # Commits

    def committed(self, transaction: Transaction, writes: list[AtomicWrite]) -> None:
        """The log has committed a transaction that was taken from the commit queue."""
        for fork in transaction.forks:
            self._forked(fork)
        self.publishing.committed(transaction.entries)
        for write in writes:
            write.listener.done()
        self.effects.commit_queue.transaction_done()

    def _forked(self, fork: Fork) -> None:
        """A log has a new epoch, since it has lost entries."""
        if fork.position is None:
            return
        self.open_messages.log_forked(fork.topic, fork.position.epoch)
        topic = self.directory.topics.get(fork.topic)
        if topic is not None and topic.position is not None and topic.position.epoch == fork.epoch:
            topic.position = Position(fork.position.epoch, topic.position.seq)
            # A client may say anything, and that must not cost the others their connections.
            if fork.is_proved:
                self._link_recovery.log_forked(topic)

    def commit_failed(self, transaction: Transaction, writes: list[AtomicWrite]) -> None:
        """The log has committed nothing of a transaction."""
        self.effects.commit_queue.fork_later(transaction.forks)
        _refuse(transaction.entries, writes, catalogue.LOG_UNAVAILABLE.refused())
        self.effects.commit_queue.transaction_done()

    # Erasure. These must be called before anything else is committed.

    def topic_erased(self, topic: TopicKey) -> None:
        """A topic's log was erased."""
        self.dispatcher.topic_erased(topic)
        self.streamed_replies.topic_erased(topic)
        self.edits.log_erased()
        self.cancellations.log_erased()
        for pending in self.effects.commit_queue.drop_changes(topic):
            reason = catalogue.CURSOR_MISMATCH.refused() if pending.read is not None else _not_found(pending)
            pending.listener.refused(pending, reason)
        if known := self.directory.topics.get(topic):
            known.position = EMPTY
            for catchup in known.catchups or ():
                catchup.abandon()

    def tenant_erased(self, tenant: str, topics: Iterable[TopicKey]) -> None:
        """Logs of an inactive tenant were erased; its entries that wait for a commit are rejected."""
        entries, writes = self.effects.commit_queue.drop_tenant(tenant)
        _refuse(entries, writes, catalogue.UNKNOWN_TENANT.refused(tenant=tenant))
        for topic in topics:
            self.topic_erased(topic)
        self.agent_queues.tenant_erased(tenant)
        self.delivery_policy.tenant_erased(tenant)

    def user_erased(self, tenant: str, user: str, topics: Iterable[TopicKey]) -> None:
        """A user's messages were erased, and these logs as a whole."""
        self.edits.log_erased()
        self.cancellations.log_erased()
        entries, writes = self.effects.commit_queue.drop_tenant(tenant, changes_by=user)
        for pending in entries:
            pending.listener.refused(pending, _not_found(pending))
        for write in writes:
            change = next(each for each in write.transaction.entries if each.change is not None)
            write.listener.failed(_not_found(change))
        for topic in topics:
            self.topic_erased(topic)
        self.dispatcher.user_erased(tenant, user)
        self.receipts.user_erased(tenant, user)

    # Time and flow

    def flush(self, now: float) -> None:
        """Dispatch deliveries and return credit; must be called after every event."""
        self.dispatcher.dispatch(now)
        self._links.return_credit()

    def tick(self, now: float) -> list[tuple[Link | AttachedWorker, Refused]]:
        """End leases. Return the peers that were silent for a lease, whose streams must end."""
        reason = catalogue.LEASE_ENDED.refused(lease_s=round(self.lease_s))
        silent: list[tuple[Link | AttachedWorker, Refused]] = []
        silent += [(link, reason) for link in self._links.tick(now)]
        reason = catalogue.LEASE_ENDED.refused(lease_s=round(self.delivery_lease_s))
        silent += [(worker, reason) for worker in self.dispatcher.tick(now)]
        self.open_messages.tick(now)
        self.directory.live_signals.expire(now)
        self.delivery_policy.tick()
        return silent

    def checkpoint(self, since: float = inf) -> None:
        """Checkpoint open messages with deltas added at `since` or before."""
        self.open_messages.checkpoint(since)

    def may_send(self, blocked_by: set[Link]) -> bool:
        """True if a source may send more: the commit queue and the outboxes that it fills have room."""
        return not blocked_by and not self.effects.commit_queue.is_full


def _not_found(change: PendingEntry) -> Refused:
    return catalogue.MESSAGE_NOT_FOUND.refused(message_id=change.message.id)


def _refuse(entries: list[PendingEntry], writes: list[AtomicWrite], reason: Refused) -> None:
    for pending in entries:
        pending.listener.refused(pending, reason)
    for write in writes:
        write.listener.failed(reason)
