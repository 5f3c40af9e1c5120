"""Frames that refer to uploads: held until the runtime has fetched the content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import ClientFrame

from trunkline_edge.core.connection import Connection, ConnectionState
from trunkline_edge.core.effects import FetchUploads
from trunkline_edge.core.sessions import Sessions
from trunkline_edge.dialects.codec import UsesUploads

#: Largest message that the router accepts.
MAX_MESSAGE_BYTES = 12 << 20


class FetchedUpload(NamedTuple):
    """The content of an upload, and its type."""

    content: bytes
    mime_type: str


class FrameHandler(Protocol):
    """Handles complete frames, and what was buffered behind one."""

    def handle(self, connection: Connection, frame: ClientFrame) -> None:
        """Handle a frame."""

    def handle_buffered_input(self, connection: Connection, now: float) -> None:
        """Handle what came meanwhile, and read from the connection again."""


class UploadFrames:
    """Completes frames with the uploads that they refer to, one frame of a connection at a time.

    Meanwhile nothing else of the connection is handled, so the order of its frames stays.
    """

    def __init__(self, sessions: Sessions, frames: FrameHandler) -> None:
        self._sessions = sessions
        self._frames = frames

    def begin(self, connection: Connection, awaited: UsesUploads) -> None:
        """Hold a frame, and ask the runtime for its uploads; reject one with another tenant's."""
        for reference in awaited.references:
            if reference.tenant != connection.tenant:
                reason = catalogue.MEDIA_NOT_FOUND.refused(key=reference.key)
                self._sessions.reject(connection, reason, "")
                return
        self._sessions.throttle.await_uploads(connection)
        self._sessions.effects.append(FetchUploads(connection, awaited))

    def fetched(
        self, connection: Connection, awaited: UsesUploads, uploads: Sequence[FetchedUpload], now: float
    ) -> None:
        """Handle the frame with its uploads, in the order of the references.

        They count as if the client had sent them in the frame.
        """
        if connection.state is not ConnectionState.OPEN:
            return
        for reference, upload in zip(awaited.references, uploads, strict=True):
            reference.part.inline = upload.content
            reference.part.mime_type = upload.mime_type
        limiter, throttle = connection.rate_limiter, self._sessions.throttle
        size = sum(len(upload.content) for upload in uploads)
        throttle.uploads_ended(connection)
        if limiter is not None and (over_limit := limiter.take(size, now)) is not None:
            self._sessions.reject(connection, over_limit, "")
            throttle.throttle(connection, now)
        else:
            self._frames.handle(connection, awaited.frame)
        self._frames.handle_buffered_input(connection, now)

    def failed(self, connection: Connection, reason: Refused, now: float) -> None:
        """Reject the frame: an upload cannot be fetched."""
        if connection.state is not ConnectionState.OPEN:
            return
        self._sessions.throttle.uploads_ended(connection)
        self._sessions.reject(connection, reason, "")
        self._frames.handle_buffered_input(connection, now)
