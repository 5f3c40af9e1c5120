"""What a socket needs of whoever runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from edge.core.connection import Connection
from edge.core.edge import EdgeCore
from edge.settings import EdgeSettings
from edge.ws.request import ConnectRequest

if TYPE_CHECKING:
    from edge.ws.socket import Socket


class Host(Protocol):
    """Runs the core, and lets sockets in."""

    core: EdgeCore
    settings: EdgeSettings
    #: Sockets on their way in, and until when; oldest first.
    handshakes: dict[Socket, float]

    @property
    def takes_handshakes(self) -> bool:
        """There is room for one more client on its way in."""

    def shaking(self, socket: Socket) -> None:
        """A client began its handshake."""

    def open(self, socket: Socket, wish: ConnectRequest) -> None:
        """A client has said where to; the router is asked."""

    def resume(self, socket: Socket, wish: ConnectRequest, payload: bytes) -> bool:
        """Read the `resume` frame that must come first. False where it was refused."""

    def gone(self, connection: Connection) -> None:
        """A client's socket is gone."""

    def caught_up(self, connection: Connection) -> None:
        """A client that lagged has taken everything."""

    def settle(self) -> None:
        """Do what the core asks for; called after every call of it."""
