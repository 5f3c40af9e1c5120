"""Frames to single clients."""

from __future__ import annotations

from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionSend
from trunkline.v1.frame_pb2 import ServerFrame
from trunkline_runtime.refusals import closing_frame, error_frame

from trunkline_router.core.directory.backpressure import LinkBackpressure
from trunkline_router.core.directory.connections import ConnectedClient, Link, Topic
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.values.log_records import AppendResult, PendingEntry


class ClientOutbox:
    """Adds frames for one connection to the outbox of its link.

    Answers fill an outbox as messages do; a full one blocks the link's own frames.
    """

    def __init__(self, directory: Directory, backpressure: LinkBackpressure) -> None:
        self._directory = directory
        self._backpressure = backpressure

    def send(self, connection: ConnectedClient, size: int) -> ServerFrame:
        """Add a frame of about `size` bytes, and return it to be filled in."""
        return self._add(connection, size).frame

    def _add(self, connection: ConnectedClient, size: int) -> ConnectionSend:
        link = connection.link
        send = link.outbox.add(size).send
        send.connection = connection.number
        self._backpressure.added(link, link.blocked_by)
        return send

    def refuse(self, connection: ConnectedClient, frame_id: str, reason: Refused) -> None:
        """Answer a frame with `error`."""
        self.send(connection, 256).error.CopyFrom(error_frame(reason, frame_id))

    def acknowledge(
        self, connection: ConnectedClient, frame_id: str, pending: PendingEntry, topic: Topic | None
    ) -> None:
        """Answer a frame with `ack`: its entry is on disk.

        `topic` is the topic that is about to deliver the entry. A link whose only listener is the author gets
        no copy, so the `ack` names the topic to advance the edge's position.
        """
        send = self._add(connection, 128)
        if topic is not None and pending.result is AppendResult.COMMITTED:
            subscription = self._directory.sole_subscription(connection, topic)
            if subscription is not None:
                send.topic = subscription.number
        ack = send.frame.ack
        ack.id = frame_id
        ack.message_id = pending.message.id
        ack.position.CopyFrom(pending.position)
        ack.address.CopyFrom(pending.message.address)

    def close(self, connection: ConnectedClient, reason: Refused) -> None:
        """Ask the edge to close a connection; it is removed when the edge reports it closed."""
        self.reject(connection.link, connection.number, reason)

    def reject(self, link: Link, number: int, reason: Refused) -> None:
        """Ask the edge to close a connection that may not have been accepted."""
        close = link.outbox.add(256).close
        close.connection = number
        close.closing.CopyFrom(closing_frame(reason))
        self._backpressure.added(link, link.blocked_by)
