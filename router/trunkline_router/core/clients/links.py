"""Links to edges: opening, credit, leases and loss."""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.edge_service_pb2 import EdgeEntry, LinkHello, LinkRequest
from trunkline_runtime.contract_version import check_peer_version

from trunkline_router.core.agents.agent_queues import AgentQueues
from trunkline_router.core.clients.frame_dispatcher import FrameDispatcher
from trunkline_router.core.clients.lifecycle import ClientLifecycle
from trunkline_router.core.clients.signals import Signals
from trunkline_router.core.clients.token_updates import TokenUpdates
from trunkline_router.core.commits.effects import Effects
from trunkline_router.core.directory.backpressure import LinkBackpressure
from trunkline_router.core.directory.connections import Link
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.directory.link_outbox import LinkOutbox
from trunkline_router.core.directory.tenant_table import TenantTable
from trunkline_router.core.validation.validator import check
from trunkline_router.core.values.topics import Position, topic_of


class Links:
    """Opens links, receives their batches and returns their credit.

    An edge may have `window` batches under way. Their credit is withheld while what they contained has
    filled the outboxes of other links, or the commit queue.
    """

    def __init__(
        self,
        directory: Directory,
        tenant_table: TenantTable,
        lifecycle: ClientLifecycle,
        frames: FrameDispatcher,
        token_updates: TokenUpdates,
        signals: Signals,
        backpressure: LinkBackpressure,
        queues: AgentQueues,
        effects: Effects,
        *,
        window: int,
        lease_s: float,
        outbox_max_bytes: int,
    ) -> None:
        self._directory = directory
        self._tenant_table = tenant_table
        self._lifecycle = lifecycle
        self._frames = frames
        self._token_updates = token_updates
        self._signals = signals
        self._backpressure = backpressure
        self._queues = queues
        self._effects = effects
        self._window = window
        self._lease_s = lease_s
        self._outbox_max_bytes = outbox_max_bytes
        #: Links whose credit is withheld.
        self._withholding: set[Link] = set()

    def opened(self, hello: LinkHello, now: float) -> tuple[Link, Link | None]:
        """An edge has opened a link. Returns it and the edge's earlier link, whose stream must end.

        The edge's earlier connections are removed; it restores those that it still has. Raises Refused
        INCOMPATIBLE_VERSION.
        """
        check(hello)
        check_peer_version(hello.contract_minor)
        before = self._directory.links.get(hello.edge_id)
        if before is not None:
            self._remove(before)
        link = Link(hello.edge_id, hello.boot_id, LinkOutbox(self._outbox_max_bytes, self._window), now)
        link.credit = self._window
        self._directory.links[hello.edge_id] = link
        self._tenant_table.send_policies(link)
        return link, before

    def received(self, link: Link, batch: LinkRequest, now: float) -> None:
        """A batch arrived. Raises Refused CREDIT_EXCEEDED if the edge had no credit for it.

        Batches of a link that was lost are dropped: its connections are no longer the router's.
        """
        if link.is_lost:
            return
        link.heard_at = now
        link.outbox.credit += batch.credit
        if batch.entries:
            if not link.credit:
                raise catalogue.CREDIT_EXCEEDED.refused()
            link.credit -= 1
            link.unreturned_credit += 1
            self._withholding.add(link)
        if batch.credit and link.outbox.is_ready:
            self._effects.writable_peers.add(link)
        frames = self._frames
        for entry in batch.entries:
            if entry.HasField("frame"):
                frames.received(link, entry.frame.connection, entry.frame.frame, now)
            else:
                self._entry_received(link, entry)

    def _entry_received(self, link: Link, entry: EdgeEntry) -> None:
        kind = entry.WhichOneof("entry")
        if kind == "opened":
            self._lifecycle.opened(link, entry.opened)
        elif kind == "closed":
            self._lifecycle.closed(link, entry.closed.connection)
        elif kind == "granted":
            self._token_updates.granted(link, entry.granted)
        elif kind == "topic":
            position = Position(entry.topic.position.epoch, entry.topic.position.seq)
            link.resume_positions[topic_of(entry.topic.address)] = position

    def drained(self, link: Link) -> bool:
        """A batch was written to the link. Returns whether that unblocks any source."""
        unblocks = self._backpressure.drained(link)
        if unblocks:
            # Workers may be among the sources.
            self._queues.mark_all()
        return unblocks

    def lost(self, link: Link) -> None:
        """The stream ended. The connections are kept for a lease, as the edge may link again."""
        link.mark_lost()
        self._signals.link_lost(link)
        self._effects.writable_peers.discard(link)
        self.drained(link)

    def _remove(self, link: Link) -> None:
        self.lost(link)
        if self._directory.links.get(link.edge_id) is link:
            del self._directory.links[link.edge_id]
        for number in list(link.connections):
            self._lifecycle.closed(link, number)
        # Closing its connections has added it again.
        self._effects.writable_peers.discard(link)

    def return_credit(self) -> None:
        """Return the withheld credit of links that block nobody any more."""
        if self._effects.commit_queue.is_full:
            return
        for link in [link for link in self._withholding if not link.blocked_by]:
            self._withholding.discard(link)
            link.credit += link.unreturned_credit
            link.outbox.return_credit(link.unreturned_credit)
            link.unreturned_credit = 0
            if not link.is_lost:
                self._effects.writable_peers.add(link)

    def tick(self, now: float) -> list[Link]:
        """Remove the links whose leases have ended. Return those whose streams must end."""
        ended = [link for link in self._directory.links.values() if link.heard_at + self._lease_s <= now]
        silent = [link for link in ended if not link.is_lost]
        for link in ended:
            self._remove(link)
        return silent
