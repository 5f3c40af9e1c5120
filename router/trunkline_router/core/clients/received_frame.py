"""A client frame as its handler receives it."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from trunkline_router.core.directory.connections import ConnectedClient

F = TypeVar("F")


class ReceivedFrame(NamedTuple, Generic[F]):
    """A valid client frame: its sender, its body, and the body serialized deterministically."""

    connection: ConnectedClient
    body: F
    serialized: bytes
