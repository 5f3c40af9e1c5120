"""Completion of what clients publish: `ack` or `error`."""

from __future__ import annotations

from functools import partial

from trunkline.v1.catalogue import Refused

from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.directory.connections import ConnectedClient, Link
from trunkline_router.core.values.log_records import PendingEntry


class ClientMessageCompletion:
    """Listener of an entry that a client publishes; answers the client's frame."""

    __slots__ = ("_frame_id", "_outbox", "connection")

    def __init__(self, outbox: ClientOutbox, connection: ConnectedClient, frame_id: str) -> None:
        self._outbox = outbox
        self._frame_id = frame_id
        self.connection: ConnectedClient | None = connection

    @property
    def blocked_by(self) -> set[Link]:
        """Shared by all clients of an edge, which are blocked by withholding its link's credit."""
        assert self.connection is not None
        return self.connection.link.blocked_by

    def committed(self, pending: PendingEntry) -> None:
        """Answer with `ack`, after everything that stands before the message in the log."""
        connection = self.connection
        assert connection is not None
        topic = connection.subscription_to(pending.topic)
        subscription = topic.subscription_on(connection.link) if topic else None
        if subscription is not None and subscription.catchup is not None:
            later = partial(self._outbox.acknowledge, connection, self._frame_id, pending, None)
            subscription.catchup.waiters.append(later)
        else:
            self._outbox.acknowledge(connection, self._frame_id, pending, topic)

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """Answer with `error`."""
        assert self.connection is not None
        self._outbox.refuse(self.connection, self._frame_id, reason)
