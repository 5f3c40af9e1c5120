"""The opening handshake of a WebSocket (RFC 6455, section 4.2)."""

from __future__ import annotations

from http import HTTPStatus

from trunkline.v1 import catalogue
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeader
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from trunkline_edge.transport.request_head import (
    RequestHead,
    announces_body,
    decoded_headers,
    header_values,
    malformed,
    tokens,
)


def accept_handshake(protocol: ServerProtocol, request: RequestHead, path: str) -> Response:
    """Return the response that accepts the handshake. Raises Refused for an invalid one."""
    if request.method != b"GET":
        raise catalogue.METHOD_NOT_ALLOWED.refused(path=path, allowed="GET")
    is_version_13 = header_values(request, b"sec-websocket-version") == [b"13"]
    if b"upgrade" not in tokens(request, b"connection") or not is_version_13:
        raise catalogue.UPGRADE_REQUIRED.refused(path=path)
    if announces_body(request):
        raise malformed("a handshake has no body")
    # The client may offer other protocols beside.
    headers = [("Connection", "Upgrade"), ("Upgrade", "websocket")]
    headers += [field for field in decoded_headers(request) if field[0].startswith("sec-websocket-")]
    try:
        response = protocol.accept(Request(path, Headers(headers)))
    except InvalidHeader as error:
        raise malformed(f"the {error.name} header has an invalid value") from None
    if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
        # Without the values, which may be secret.
        raise malformed(str(protocol.handshake_exc).partition(":")[0])
    return response
