"""Token refresh: clients replace their token while connected."""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import Grants
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionGranted
from trunkline.v1.frame_pb2 import AuthFrame

from trunkline_edge.core.connection import Authenticated, Connection, ConnectionState
from trunkline_edge.core.effects import VerifyToken
from trunkline_edge.core.sessions import Sessions


class TokenRefresh:
    """Passes the grants of new tokens to the router, which decides; one token per connection at a time."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._uplink = sessions.uplink
        self._effects = sessions.effects
        self._expiries = sessions.expiries

    def request(self, connection: Connection, frame: AuthFrame) -> None:
        """Have a client's new token verified. Raises Refused UNEXPECTED_FRAME if no token can be replaced."""
        problem = ""
        if connection.principal is None:
            problem = "the connection was made without a token"
        elif connection.is_verifying or connection.pending_token is not None:
            problem = "another token is still being verified"
        if problem:
            raise catalogue.UNEXPECTED_FRAME.refused(type="auth", problem=problem)
        connection.is_verifying = True
        self._effects.append(VerifyToken(connection, frame))

    def verified(
        self, connection: Connection, principal: Authenticated, grants: Grants, frame_id: str
    ) -> None:
        """Send a verified token's grants to the router; the token takes effect when that accepts it."""
        connection.is_verifying = False
        if connection.state is not ConnectionState.OPEN:
            return
        granted = ConnectionGranted(connection=connection.number, grants=grants, id=frame_id)
        connection.pending_token = (principal, granted)
        self.send(connection)

    def invalid(self, connection: Connection, reason: Refused, frame_id: str) -> None:
        """Answer the frame with `error`: its token failed the verification. The connection stays open."""
        connection.is_verifying = False
        self._sessions.reject(connection, reason, frame_id)

    def send(self, connection: Connection) -> None:
        """Send the grants of the connection's pending token, if it has one and the link is up."""
        if connection.pending_token is not None and self._uplink.is_up:
            granted = connection.pending_token[1]
            self._uplink.add(granted.ByteSize()).granted.CopyFrom(granted)

    def accepted(self, connection: Connection, frame_id: str) -> None:
        """Replace the connection's token: the router has accepted the new one."""
        if connection.pending_token is None or connection.pending_token[1].id != frame_id:
            return
        (connection.principal, granted), connection.pending_token = connection.pending_token, None
        opened = connection.parse_opened()
        opened.grants.CopyFrom(granted.grants)
        connection.registration_bytes = opened.SerializeToString()
        self._expiries.add(connection)

    def rejected(self, connection: Connection, frame_id: str) -> None:
        """Keep the connection's token if the rejected frame carried a new one."""
        if connection.pending_token is not None and connection.pending_token[1].id == frame_id:
            connection.pending_token = None
