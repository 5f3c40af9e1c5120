"""What each RPC takes, as the contract says it by the option `requires`, and for which tenant it asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, NamedTuple

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from trunkline.v1.access_pb2 import (
    SCOPE_ADMIN,
    SCOPE_HISTORY,
    SCOPE_LINK,
    SCOPE_OPERATOR,
    SCOPE_UNSPECIFIED,
    requires,
)

from trunkline_router.core.tenants.api_keys import Caller, CallerKind

#: The tenants that a message names.
_Names = Callable[[Any], Iterable[str]]


class MethodRule(NamedTuple):
    """What an RPC takes."""

    scope: int
    #: The field that names the tenant; empty where there is none.
    field: str = ""
    names: _Names = lambda _: ()
    #: A message holds many requests, whose faults are told one by one; they may name several tenants.
    is_batch: bool = False
    #: What takes its place for an edge that acts for a tenant; 0 for nothing else.
    acting_scope: int = 0
    #: A call is a message that the tenant sends.
    says: bool = False
    #: A call may hold up what all write.
    alone: bool = False

    def scope_for(self, caller: Caller) -> int:
        """What this caller must have been given."""
        acts = caller.kind is CallerKind.EDGE and caller.tenant
        return self.acting_scope if acts and self.acting_scope else self.scope


#: For RPCs of which the contract does not say what they take.
NOBODYS = MethodRule(SCOPE_UNSPECIFIED)


def _of_field(path: str) -> _Names:
    named = attrgetter(path)
    return lambda message: (named(message),)


def _of_hello(message: Any) -> Iterable[str]:
    return (message.hello.tenant,) if message.HasField("hello") else ()


def _of_batch(message: Any) -> Iterable[str]:
    return {item.request.address.tenant for item in message.requests}


#: Clients of LangBot erase their conversations by a route of their own, which takes no more than their token.
#: By the contract's own routes it takes an API key: the edge sees to that.
_BY_CLIENTS = {"trunkline.v1.HistoryService.ResetConversation": SCOPE_HISTORY}

#: Which calls say something; what is said by streams is counted as it is read.
_SAYING = {f"trunkline.v1.BroadcastService.{name}" for name in ("Broadcast", "OpenMessage", "ExtendMessage")}

#: Which calls hold up what all write, beside those that administer a tenant.
_HOLDING_UP = {"trunkline.v1.AgentService.ReplayDeadLetters"}

#: Where messages that stream in name their tenants.
_STREAMED: dict[str, tuple[str, _Names, bool]] = {
    "trunkline.v1.AttachRequest": ("hello.tenant", _of_hello, False),
    "trunkline.v1.BroadcastManyRequest": ("requests.request.address.tenant", _of_batch, True),
}


def rule_of(method: MethodDescriptor) -> MethodRule:
    """The rule of an RPC; NOBODYS where the contract has none."""
    scope = method.GetOptions().Extensions[requires]
    message = method.input_type
    if scope == SCOPE_UNSPECIFIED:
        return NOBODYS
    if message.full_name in _STREAMED:
        return MethodRule(scope, *_STREAMED[message.full_name])
    for field in ("tenant", "address.tenant"):
        if not method.client_streaming and _has(message, field):
            acting = _BY_CLIENTS.get(method.full_name, 0)
            says = method.full_name in _SAYING
            alone = scope == SCOPE_ADMIN or method.full_name in _HOLDING_UP
            return MethodRule(scope, field, _of_field(field), acting_scope=acting, says=says, alone=alone)
    return MethodRule(scope) if scope in (SCOPE_OPERATOR, SCOPE_LINK) else NOBODYS


def _has(message: Descriptor | None, path: str) -> bool:
    for name in path.split("."):
        if message is None or name not in message.fields_by_name:
            return False
        message = message.fields_by_name[name].message_type
    return True


def rule_at(service: str, rpc: str) -> MethodRule:
    """The rule of an RPC, by its names."""
    try:
        return rule_of(descriptor_pool.Default().FindMethodByName(f"{service}.{rpc}"))
    except KeyError:
        return NOBODYS
