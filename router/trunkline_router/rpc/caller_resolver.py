"""Determines the caller of an RPC from its metadata and its peer address."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Protocol
from urllib.parse import unquote

import grpc.aio
from google.protobuf.message import DecodeError
from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import TokenHolder
from trunkline_runtime.call_metadata import (
    ACTING_FOR,
    BY_SECRET,
    FORWARDED,
    REMOTE_IP,
    TOKEN_HOLDER,
    bearer_token,
    is_proxied,
)
from trunkline_runtime.jose import is_jwt
from trunkline_runtime.tenant_policy import CLIENT_SCOPES

from trunkline_router.core.tenants.api_keys import ApiKeys
from trunkline_router.core.tenants.callers import Caller, CallerKind, is_local
from trunkline_router.core.tenants.token_client import TokenClient
from trunkline_router.core.validation.validator import check

AUTHORIZATION = "authorization"

#: Longer keys are rejected without a look-up.
MAX_KEY_CHARS = 1024

_TOKEN_PROBLEM = (
    "a client's token must be presented to an edge: on a WebSocket, an event stream, or as the bearer token"
    " of an HTTP/JSON call"
)

_Context = grpc.aio.ServicerContext[Any, Any]


class EdgeVerifier(Protocol):
    """Recognises edges."""

    def is_edge(self, context: _Context) -> bool:
        """Whether the caller has the credentials of an edge."""

    def edge_names(self, context: _Context) -> tuple[str, ...]:
        """Names of which an edge must use one for its id; empty if it may use any id."""


class CallerResolver:
    """Tells the operator, holders of API keys, edges and their clients from anonymous callers."""

    def __init__(
        self,
        keys: ApiKeys,
        operator_key: str,
        edge_verifier: EdgeVerifier,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._keys = keys
        self._operator_digest = _digest(operator_key)
        self._edge_verifier = edge_verifier
        self._now_ms = now_ms

    def resolve(self, context: _Context) -> Caller:
        """Return the caller. Raises Refused UNAUTHORIZED for invalid credentials.

        Only the authorization scheme Bearer counts; others are ignored.
        """
        metadata = _metadata(context)
        keys = [key for value in metadata[AUTHORIZATION] if (key := bearer_token(value)) is not None]
        if keys:
            return self._holder_of(keys)
        is_edge = self._edge_verifier.is_edge(context)
        local = is_local(
            peer_ip(context.peer()),
            metadata[REMOTE_IP],
            is_forwarded=bool(metadata[FORWARDED]) or is_proxied_call(context),
            is_edge=is_edge,
        )
        client = _token_client(metadata[TOKEN_HOLDER], is_edge) if metadata[TOKEN_HOLDER] else None
        if metadata[ACTING_FOR]:
            return _acting_edge(metadata, is_edge, local, client)
        if client is not None:
            return Caller(CallerKind.CLIENT, client.tenant, client=client)
        if not is_edge:
            return Caller(CallerKind.ANYBODY, is_local=local)
        return Caller(CallerKind.EDGE, is_local=local, edge_names=self._edge_verifier.edge_names(context))

    def source(self, context: _Context) -> str:
        """Return where a call comes from, for the audit trail."""
        peer = peer_ip(context.peer()) or context.peer()
        remote = remote_ip(context)
        if not remote:
            return peer
        # Anybody may name an address; only an edge is believed.
        is_edge = self._edge_verifier.is_edge(context)
        return f"{remote[:64]} via edge {peer}" if is_edge else f"{peer} for {remote[:64]}"

    def _holder_of(self, keys: list[str]) -> Caller:
        [key, *others] = keys
        if not others and len(key) <= MAX_KEY_CHARS:
            if hmac.compare_digest(_digest(key), self._operator_digest):
                return Caller(CallerKind.OPERATOR)
            if caller := self._keys.authenticate(key, self._now_ms()):
                return caller
        raise catalogue.UNAUTHORIZED.refused(
            problem=_TOKEN_PROBLEM if is_jwt(key) else "the key is not valid"
        )


def _acting_edge(
    metadata: dict[str, list[str]], is_edge: bool, is_local: bool, manager: TokenClient | None
) -> Caller:
    [tenant, *others] = metadata[ACTING_FOR]
    if not is_edge or others or not tenant:
        raise catalogue.UNAUTHORIZED.refused(problem=f"{ACTING_FOR} is for edges and names one tenant")
    by_secret, tenant = bool(metadata[BY_SECRET]), unquote(tenant)
    if manager is not None and manager.tenant != tenant:
        raise catalogue.UNAUTHORIZED.refused(problem=f"{ACTING_FOR} and {TOKEN_HOLDER} name two tenants")
    return Caller(
        CallerKind.EDGE, tenant, CLIENT_SCOPES, is_local=is_local, by_secret=by_secret, manager=manager
    )


def _token_client(holders: list[str], is_edge: bool) -> TokenClient:
    [holder, *others] = holders
    try:
        parsed = TokenHolder.FromString(holder.encode("latin-1"))
    except DecodeError:
        parsed = None
    if not is_edge or others or parsed is None:
        raise catalogue.UNAUTHORIZED.refused(problem=f"{TOKEN_HOLDER} is for edges and names one client")
    check(parsed, TOKEN_HOLDER)
    return TokenClient.of(parsed)


def _metadata(context: _Context) -> dict[str, list[str]]:
    """The values of the metadata entries that identify a caller, by name; bytes as Latin-1."""
    found: dict[str, list[str]] = {
        name: [] for name in (AUTHORIZATION, REMOTE_IP, FORWARDED, ACTING_FOR, BY_SECRET, TOKEN_HOLDER)
    }
    for name, value in context.invocation_metadata() or ():
        if name in found:
            found[name].append(value if isinstance(value, str) else value.decode("latin-1"))
    return found


def is_proxied_call(context: _Context) -> bool:
    """Whether the call came through a proxy."""
    return is_proxied(name for name, _ in context.invocation_metadata() or ())


def remote_ip(context: _Context) -> str:
    """The address that the call is made for, as stated by the caller; empty if not stated."""
    return next(iter(_metadata(context)[REMOTE_IP]), "")


def peer_ip(peer: str) -> str:
    """The IP address in a gRPC peer name such as `ipv6:%5B::1%5D:50051`; empty if there is none."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    return unquote(rest).rpartition(":")[0].strip("[]")


def _digest(key: str) -> bytes:
    return sha256(key.encode()).digest()
