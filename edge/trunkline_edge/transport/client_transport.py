"""Transport of one client, as the runtime sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import ClosingFrame

from trunkline_edge.auth.request_source import RequestSource
from trunkline_edge.core.connection import Connection
from trunkline_edge.core.handshakes import Handshake
from trunkline_edge.dialects.codec import Codec


class ClientTransport(ABC):
    """A client's socket and protocol: WebSocket, or event stream; or its session by long polling.

    Data to write comes from the edge's core, encoded once for all who receive it. The HTTP response to the
    handshake is delayed until the first of it, so that both leave together.
    """

    __slots__ = ("connection", "handshake", "remote_ip", "source")

    def __init__(self, remote_ip: str) -> None:
        self.remote_ip = remote_ip
        #: Set while the handshake is in progress.
        self.handshake: Handshake | None = None
        #: Set from admission until the client is gone.
        self.connection: Connection | None = None
        #: Known once the request has been read.
        self.source = RequestSource(remote_ip)

    @property
    def is_waiting(self) -> bool:
        """The client waits for admission."""
        return self.handshake is not None and self.connection is None

    @property
    @abstractmethod
    def buffered(self) -> int:
        """Bytes written that the client has not taken."""

    @property
    @abstractmethod
    def is_closing(self) -> bool:
        """Writes have no effect any longer."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Write data, behind the response to the handshake if that was delayed.

        Empty data writes the response alone: the dialect sends nothing for what happened.
        """

    @abstractmethod
    def admitted(self, frame_bytes: int) -> None:
        """Pass on the frames that waited for admission; larger ones than `frame_bytes` are rejected."""

    @abstractmethod
    def reject(self, reason: Refused) -> None:
        """Reject a client without connection."""

    @abstractmethod
    def reject_connection(self, codec: Codec, closing: ClosingFrame, data: bytes) -> None:
        """Reject a client whose connection was never accepted, by an HTTP status or by `closing`.

        `data` is `closing`, encoded by `codec`.
        """

    @abstractmethod
    def ping(self) -> None:
        """Probe whether the client still takes what is written."""

    @abstractmethod
    def close(self, code: int, reason: str) -> None:
        """Close once the client has taken what was written; abort if that takes too long."""

    @abstractmethod
    def pause_reading(self) -> None:
        """Read nothing from the socket."""

    @abstractmethod
    def resume_reading(self) -> None:
        """Read from the socket again."""
