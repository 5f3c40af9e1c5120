"""Tokens that clients show while they are connected."""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import Grants
from trunkline.v1.edge_service_pb2 import ConnectionGranted, ConnectionOpened
from trunkline.v1.frame_pb2 import AuthFrame

from trunkline_edge.core.connection import Connection, ConnectionState
from trunkline_edge.core.uplink import Uplink


class TokenRefresh:
    """Carries what another token allows to the router, which has the last word.

    Effects gather in `to_verify`, tokens for which the shell then calls `proven` or refuses the frame, and
    in `renewed`, connections whose new token counts from now on; the shell empties both.
    """

    def __init__(self, uplink: Uplink) -> None:
        self._uplink = uplink
        self.to_verify: list[tuple[Connection, AuthFrame]] = []
        self.renewed: list[Connection] = []

    def show(self, connection: Connection, frame: AuthFrame) -> None:
        """A client shows another token. Raises Refused where it cannot."""
        problem = ""
        if connection.bearer is None:
            problem = "the connection was made without a token"
        elif connection.proof is not None:
            problem = "another one is being looked at"
        if problem:
            raise catalogue.UNEXPECTED_FRAME.refused(type="auth", problem=problem)
        self.to_verify.append((connection, frame))

    def proven(self, connection: Connection, bearer: object, grants: Grants, frame_id: str) -> None:
        """Another token was verified: the router is told, and when it agrees it counts."""
        if connection.state is not ConnectionState.OPEN:
            return
        granted = ConnectionGranted(connection=connection.number, grants=grants, id=frame_id)
        connection.proof = (bearer, granted)
        self.tell(connection)

    def tell(self, connection: Connection) -> None:
        """Tell the router of another token, if there is one, and a link."""
        if connection.proof is not None and self._uplink.is_up:
            granted = connection.proof[1]
            self._uplink.add(granted.ByteSize()).granted.CopyFrom(granted)

    def taken(self, connection: Connection, frame_id: str) -> None:
        """The router has taken another token: the connection is known by it from now on."""
        if connection.proof is None or connection.proof[1].id != frame_id:
            return
        (connection.bearer, granted), connection.proof = connection.proof, None
        opened = ConnectionOpened.FromString(connection.opened)
        opened.grants.CopyFrom(granted.grants)
        connection.opened = opened.SerializeToString()
        self.renewed.append(connection)

    def refused(self, connection: Connection, frame_id: str) -> None:
        """The router has refused a frame; where it was the token's, all stays as it was."""
        if connection.proof is not None and connection.proof[1].id == frame_id:
            connection.proof = None
