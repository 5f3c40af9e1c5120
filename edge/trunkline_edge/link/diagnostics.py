"""Diagnoses of failed links: one line each, naming the setting to change."""

from __future__ import annotations

import grpc
import grpc.aio
from trunkline.v1 import catalogue
from trunkline_runtime import http_proxy
from trunkline_runtime.refusals import details_of, read_status

from trunkline_edge.router_channel import RouterChannelFactory

#: All that gRPC reports if the stream ends during a write; the next attempt may report the cause.
CUT_OFF = "the stream ended while it was written to"

_WRONG_KEY = "the router does not take this edge's link key: TRUNKLINE_LINK_KEY must be the one of the router"
_NO_PROOF = (
    "the router wants a proof that this is an edge: TRUNKLINE_LINK_KEY as it is there, or TRUNKLINE_ROUTER"
    " set to its port for links, TRUNKLINE_LINK_LISTEN, with TRUNKLINE_ROUTER_CERT and TRUNKLINE_ROUTER_KEY;"
    " if it has TRUNKLINE_LINK_NAMES, the certificate must have one of them"
)
_UNTRUSTED = "the router's certificate is not trusted ({reason}): TRUNKLINE_ROUTER_CA must name its authority"
_OTHER_NAME = (
    "the router's certificate is for another name than the one in TRUNKLINE_ROUTER:"
    " TRUNKLINE_ROUTER_NAME sets the name that it is for"
)
_NO_TLS = (
    "the router does not speak TLS there: set its TRUNKLINE_TLS_CERT and TRUNKLINE_TLS_KEY, or take away this"
    " edge's TRUNKLINE_ROUTER_CA, TRUNKLINE_ROUTER_CERT and TRUNKLINE_ROUTER_TLS"
)
_STANDBY = (
    "it is a standby: another router owns the log; TRUNKLINE_ROUTER can name both, separated by a comma"
)
_CLOSED = "the router closed the connection at once; {guess}"
_WANTS_TLS = "if it speaks TLS, set TRUNKLINE_ROUTER_CA or TRUNKLINE_ROUTER_TLS"
_WANTS_CERTIFICATE = (
    "if that is its port for links, it takes certificates for clients by an authority in its"
    " TRUNKLINE_TLS_CLIENT_CA: set TRUNKLINE_ROUTER_CERT and TRUNKLINE_ROUTER_KEY to one"
)


class LinkFailed(Exception):
    """A link failed or broke; the text is one line for the log."""

    def __init__(self, problem: str, *, may_be_standby: bool = False) -> None:
        super().__init__(problem)
        #: The router answered, and is or may be a standby, which takes over at any moment.
        self.may_be_standby = may_be_standby


def explain(error: grpc.aio.AioRpcError, channels: RouterChannelFactory) -> LinkFailed:
    """Return the likely cause of a failed link."""
    if details_of(read_status(error.trailing_metadata())).reason == catalogue.ROUTER_STANDBY.code:
        return LinkFailed(_STANDBY, may_be_standby=True)
    problem = _cause(error, channels)
    return LinkFailed(problem, may_be_standby=problem == CUT_OFF)


def _cause(error: grpc.aio.AioRpcError, channels: RouterChannelFactory) -> str:
    code, details = error.code(), (error.details() or "").split("\n")[0]
    if code is grpc.StatusCode.INTERNAL and details.endswith("from Core"):
        return CUT_OFF
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return "it speaks gRPC but has no EdgeService: is it a Trunkline router?"
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return _WRONG_KEY if channels.metadata else _NO_PROOF
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return f"{details}: TRUNKLINE_EDGE_ID sets it"
    if "http1.x" in details or "HTTP/1" in details:
        return "it is no gRPC server: TRUNKLINE_ROUTER must name a router's gRPC port"
    problem = _explain_tls(details, channels) or f"{code.name}: {details}"
    return problem + http_proxy.describe(channels.uses_proxy)


def _explain_tls(details: str, channels: RouterChannelFactory) -> str:
    """Return the cause of a failed TLS handshake; empty for any other failure."""
    _, untrusted, reason = details.partition("CERTIFICATE_VERIFY_FAILED: ")
    if untrusted:
        return _UNTRUSTED.format(reason=reason.removesuffix(": OK"))
    if "Hostname Verification" in details:
        return _OTHER_NAME
    if "WRONG_VERSION_NUMBER" in details:
        return _NO_TLS
    if details.endswith("Socket closed"):
        return _CLOSED.format(guess=_WANTS_CERTIFICATE if channels.is_encrypted else _WANTS_TLS)
    return ""
