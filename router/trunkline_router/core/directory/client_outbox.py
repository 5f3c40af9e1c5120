"""What is told to clients."""

from __future__ import annotations

from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionSend
from trunkline.v1.frame_pb2 import ServerFrame
from trunkline_runtime.refusals import closing_frame, error_frame

from trunkline_router.core.directory.backpressure import Backpressure
from trunkline_router.core.directory.connections import ConnectedClient, Link, Topic
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.values.log_records import AppendResult, PendingEntry


class ClientOutbox:
    """Puts frames for one connection into the outbox of its link."""

    def __init__(self, directory: Directory, backpressure: Backpressure) -> None:
        self._directory = directory
        self._backpressure = backpressure

    def send(self, connection: ConnectedClient, size: int) -> ServerFrame:
        """A frame to be filled in, of about `size` bytes."""
        return self._entry(connection, size).frame

    def _entry(self, connection: ConnectedClient, size: int) -> ConnectionSend:
        link = connection.link
        send = link.outbox.add(size).send
        send.connection = connection.number
        # Answers fill an outbox as well as messages do, and then it is the asking that must stop.
        self._backpressure.added(link, link.blocked_by)
        return send

    def refuse(self, connection: ConnectedClient, frame_id: str, reason: Refused) -> None:
        """Answer a frame with `error`."""
        self.send(connection, 256).error.CopyFrom(error_frame(reason, frame_id))

    def acknowledge(
        self, connection: ConnectedClient, frame_id: str, pending: PendingEntry, topic: Topic | None
    ) -> None:
        """What a client said is on disk. `topic` is where it is about to be delivered to others."""
        send = self._entry(connection, 128)
        if topic is not None and pending.result is AppendResult.COMMITTED:
            alone = self._directory.heard_alone(connection, topic)
            if alone is not None:
                send.topic = alone.number
        ack = send.frame.ack
        ack.id = frame_id
        ack.message_id = pending.message.id
        ack.position.CopyFrom(pending.position)
        ack.address.CopyFrom(pending.message.address)

    def close(self, connection: ConnectedClient, reason: Refused) -> None:
        """Have a connection closed; it is gone once its edge says so."""
        self.turn_away(connection.link, connection.number, reason)

    def turn_away(self, link: Link, number: int, reason: Refused) -> None:
        """Have a connection closed that was, perhaps, never accepted."""
        close = link.outbox.add(256).close
        close.connection = number
        close.closing.CopyFrom(closing_frame(reason))
        self._backpressure.added(link, link.blocked_by)
