"""A client frame as its handler receives it."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from trunkline_router.core.directory.connections import ConnectedClient

F = TypeVar("F")


class ReceivedFrame(NamedTuple, Generic[F]):
    """A valid client frame that its sender may send."""

    connection: ConnectedClient
    body: F
    #: Serialized size of the ClientFrame.
    size: int
    #: Time at which it arrived.
    now: float
