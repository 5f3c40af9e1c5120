"""What is told to clients."""

from __future__ import annotations

from functools import partial

from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionSend
from trunkline.v1.frame_pb2 import ServerFrame

from trunkline_router.core.commits.publishing import PublishPipeline
from trunkline_router.core.directory.directory import ConnectedClient, Directory, Link, Topic
from trunkline_router.core.values.error_frames import closing_frame, error_frame
from trunkline_router.core.values.log_records import AppendResult, PendingEntry


class ClientOutbox:
    """Puts frames for one connection into the outbox of its link."""

    def __init__(self, directory: Directory, publishing: PublishPipeline) -> None:
        self._directory = directory
        self._publishing = publishing

    def send(self, connection: ConnectedClient, size: int) -> ServerFrame:
        """A frame to be filled in, of about `size` bytes."""
        return self._entry(connection, size).frame

    def _entry(self, connection: ConnectedClient, size: int) -> ConnectionSend:
        link = connection.link
        send = link.outbox.add(size).send
        send.connection = connection.number
        # Answers fill an outbox as well as messages do, and then it is the asking that must stop.
        self._publishing.mailed(link, link.blocked_by)
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
        self._publishing.mailed(link, link.blocked_by)


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
