"""Rules of each RPC: the permission stated by the contract's options, and the tenant concerned."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, NamedTuple

from google.api import annotations_pb2
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from trunkline.v1.access_pb2 import (
    RIGHT_UNSPECIFIED,
    SCOPE_ADMIN,
    SCOPE_HISTORY,
    SCOPE_LINK,
    SCOPE_OPERATOR,
    SCOPE_UNSPECIFIED,
    Right,
    audited,
    client_right,
    requires,
    requires_for_all,
)

from trunkline_router.core.tenants.callers import Caller, CallerKind

#: Returns the tenants that a message names.
_TenantNames = Callable[[Any], Iterable[str]]


class MethodRule(NamedTuple):
    """Rule of one RPC."""

    scope: int
    #: The field that names the tenant; empty if none does.
    tenant_field: str = ""
    tenant_names: _TenantNames = lambda _: ()
    #: A message holds many requests, for one or more tenants; each is answered on its own.
    is_batch: bool = False
    #: Scope required instead from an edge that acts for a client; 0 for the same.
    acting_scope: int = 0
    #: Right that a client needs instead; unspecified if clients may not call this RPC.
    client_right: Right.ValueType = RIGHT_UNSPECIFIED
    #: A call publishes a message, and counts as one for the tenant's rate limits.
    is_publishing: bool = False
    #: A call may block the log's writer: one at a time per tenant.
    is_exclusive: bool = False
    #: A call is recorded in the audit trail, and refused attempts as well.
    is_audited: bool = False
    #: Scope required if the request names no tenant; 0 if it must name one.
    scope_for_all: int = 0
    #: A call changes nothing.
    is_read: bool = False
    #: Type of the requests; None in DENY.
    request_type: Descriptor | None = None

    def scope_for(self, caller: Caller) -> int:
        """The scope that this caller needs."""
        is_acting = caller.kind is CallerKind.EDGE and caller.tenant
        return self.acting_scope if is_acting and self.acting_scope else self.scope


#: Denies every caller: the rule of RPCs for which the contract states none.
DENY = MethodRule(SCOPE_UNSPECIFIED)


def _names_at(path: str) -> _TenantNames:
    name_of = attrgetter(path)
    return lambda message: (name_of(message),)


def _names_in_hello(message: Any) -> Iterable[str]:
    return (message.hello.tenant,) if message.HasField("hello") else ()


def _names_in_batch(message: Any) -> Iterable[str]:
    return {item.request.address.tenant for item in message.requests}


#: LangBot clients reset their conversations through a route of the dialect, with their token alone. The
#: contract's own route requires an API key, which the edge checks.
_ACTING_SCOPES = {"trunkline.v1.HistoryService.ResetConversation": SCOPE_HISTORY}

#: Unary calls that publish; messages in streams are charged as they are read.
_PUBLISHING = {
    f"trunkline.v1.BroadcastService.{name}" for name in ("Broadcast", "OpenMessage", "ExtendMessage")
}

#: Calls that block the log's writer, besides those that administer a tenant.
_EXCLUSIVE = {"trunkline.v1.AgentService.ReplayDeadLetters"}

#: The tenant field of streamed requests, its reader, and whether each is a batch.
_STREAMED: dict[str, tuple[str, _TenantNames, bool]] = {
    "trunkline.v1.AttachRequest": ("hello.tenant", _names_in_hello, False),
    "trunkline.v1.BroadcastManyRequest": ("requests.request.address.tenant", _names_in_batch, True),
}


def rule_of(method: MethodDescriptor) -> MethodRule:
    """Return the rule of an RPC; DENY if the contract states none."""
    scope = method.GetOptions().Extensions[requires]
    message = method.input_type
    if scope == SCOPE_UNSPECIFIED:
        return DENY
    if message.full_name in _STREAMED:
        return MethodRule(scope, *_STREAMED[message.full_name])
    for field in ("tenant", "address.tenant"):
        if not method.client_streaming and _has_field(message, field):
            return MethodRule(
                scope,
                field,
                _names_at(field),
                acting_scope=_ACTING_SCOPES.get(method.full_name, 0),
                client_right=method.GetOptions().Extensions[client_right],
                is_publishing=method.full_name in _PUBLISHING,
                is_exclusive=scope == SCOPE_ADMIN or method.full_name in _EXCLUSIVE,
                is_audited=method.GetOptions().Extensions[audited],
                scope_for_all=method.GetOptions().Extensions[requires_for_all],
            )
    return MethodRule(scope) if scope in (SCOPE_OPERATOR, SCOPE_LINK) else DENY


def _has_field(message: Descriptor | None, path: str) -> bool:
    for name in path.split("."):
        if message is None or name not in message.fields_by_name:
            return False
        message = message.fields_by_name[name].message_type
    return True


def rule_at(service: str, rpc: str) -> MethodRule:
    """Return the rule of an RPC by its names; DENY if the contract has no such RPC."""
    try:
        method = descriptor_pool.Default().FindMethodByName(f"{service}.{rpc}")
        is_read = bool(method.GetOptions().Extensions[annotations_pb2.http].get)
        return rule_of(method)._replace(is_read=is_read, request_type=method.input_type)
    except KeyError:
        return DENY
