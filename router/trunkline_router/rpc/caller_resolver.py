"""Finds out who makes a call, by what it shows in its metadata and where it comes from."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Protocol
from urllib.parse import unquote

import grpc.aio
from trunkline.v1 import catalogue
from trunkline_runtime.call_metadata import ACTING_FOR, FORWARDED, PROXIED, REMOTE_IP, bearer_token
from trunkline_runtime.tenant_policy import CLIENT_SCOPES

from trunkline_router.core.tenants.api_keys import ApiKeys, Caller, CallerKind, is_local

AUTHORIZATION = "authorization"

#: A longer key is nobody's, and is not looked at.
MAX_KEY_CHARS = 1024

_Context = grpc.aio.ServicerContext[Any, Any]


class EdgeVerifier(Protocol):
    """Knows an edge when it sees one."""

    def holds(self, context: _Context) -> bool:
        """Whether the caller has shown what links need."""


class CallerResolver:
    """Knows the operator, those with API keys, edges, and that everybody else is none of these."""

    def __init__(
        self,
        keys: ApiKeys,
        operator_key: str,
        proof: EdgeVerifier,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._keys = keys
        self._operator = _digest(operator_key)
        self._proof = proof
        self._now_ms = now_ms

    def caller(self, context: _Context) -> Caller:
        """Who makes this call. Raises Refused UNAUTHORIZED for a proof that does not hold.

        Of authorization only the scheme Bearer counts.
        """
        shown = _shown(context)
        bearers = [token for each in shown[AUTHORIZATION] if (token := bearer_token(each)) is not None]
        if bearers:
            return self._bearer_of(bearers)
        is_edge = self._proof.holds(context)
        local = is_local(
            peer_ip(context.peer()),
            shown[REMOTE_IP],
            is_forwarded=bool(shown[FORWARDED]) or is_proxied(context),
            is_edge=is_edge,
        )
        if shown[ACTING_FOR]:
            return self._acting(shown[ACTING_FOR], is_edge, local)
        return Caller(CallerKind.EDGE if is_edge else CallerKind.ANYBODY, is_local=local)

    def _bearer_of(self, tokens: list[str]) -> Caller:
        [token, *others] = tokens
        if not others and len(token) <= MAX_KEY_CHARS:
            if hmac.compare_digest(_digest(token), self._operator):
                return Caller(CallerKind.OPERATOR)
            if found := self._keys.caller(token, self._now_ms()):
                return found
        raise catalogue.UNAUTHORIZED.refused(problem="the key that was shown is not valid")

    def _acting(self, tenants: list[str], is_edge: bool, is_local: bool) -> Caller:
        [tenant, *others] = tenants
        if not is_edge or others or not tenant:
            raise catalogue.UNAUTHORIZED.refused(problem=f"{ACTING_FOR} is for edges, and names one tenant")
        return Caller(CallerKind.EDGE, unquote(tenant), CLIENT_SCOPES, is_local=is_local)


def _shown(context: _Context) -> dict[str, list[str]]:
    """What the metadata says, by name."""
    found: dict[str, list[str]] = {AUTHORIZATION: [], REMOTE_IP: [], FORWARDED: [], ACTING_FOR: []}
    for name, value in context.invocation_metadata() or ():
        if name in found:
            found[name].append(value if isinstance(value, str) else value.decode("latin-1"))
    return found


def is_proxied(context: _Context) -> bool:
    """The call came by a proxy."""
    return any(name in PROXIED for name, _ in context.invocation_metadata() or ())


def remote_ip(context: _Context) -> str:
    """What the call says of the address that it is made for; empty where it says nothing."""
    return next(iter(_shown(context)[REMOTE_IP]), "")


def peer_ip(peer: str) -> str:
    """The address in what gRPC calls a peer, such as `ipv6:%5B::1%5D:50051`; empty where there is none."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    return unquote(rest).rpartition(":")[0].strip("[]")


def _digest(key: str) -> bytes:
    return sha256(key.encode()).digest()
