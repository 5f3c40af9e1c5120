"""Answers to what clients publish."""

from __future__ import annotations

from functools import partial

from trunkline.v1.catalogue import Refused

from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.directory.connections import ConnectedClient, Link
from trunkline_router.core.values.log_records import PendingEntry


class ClientMessageCompletion:
    """Origin of what a client says."""

    __slots__ = ("_answers", "_frame_id", "connection")

    def __init__(self, answers: ClientOutbox, connection: ConnectedClient, frame_id: str) -> None:
        self._answers = answers
        self._frame_id = frame_id
        self.connection: ConnectedClient | None = connection

    @property
    def blocked_by(self) -> set[Link]:
        """An edge's clients are held back together, by the credit of its link."""
        assert self.connection is not None
        return self.connection.link.blocked_by

    def committed(self, pending: PendingEntry) -> None:
        """Answer with `ack`, which never comes before what stands ahead of the message in the log."""
        connection = self.connection
        assert connection is not None
        topic = connection.hears(pending.topic)
        link_topic = topic.on(connection.link) if topic else None
        if link_topic is not None and link_topic.catchup is not None:
            later = partial(self._answers.acknowledge, connection, self._frame_id, pending, None)
            link_topic.catchup.waiters.append(later)
        else:
            self._answers.acknowledge(connection, self._frame_id, pending, topic)

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """Answer with `error`."""
        assert self.connection is not None
        self._answers.refuse(self.connection, self._frame_id, reason)
