"""Decides who may call what: every RPC passes the guard, and none gets by without a rule.

What a caller must have been given is said in the contract, by the option `requires` of the RPC, and for
which tenant it asks is said in its request.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from ipaddress import ip_address
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from grpc_reflection.v1alpha import reflection
from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import SCOPE_HISTORY, SCOPE_LINK, SCOPE_OPERATOR, SCOPE_UNSPECIFIED, requires
from trunkline.v1.catalogue import Refused

from router.core.access import Caller, Kind
from router.core.turns import Resting
from router.rpc.callers import Callers, Proof, remote_ip
from router.rpc.status import refuse
from router.rpc.turns import size_of, turn
from router.shell import CALL, Call, Shell
from shared.refusals import Refusals

#: Services that anybody may call: they tell that a router is there, and what the contract is.
PUBLIC = frozenset({"grpc.health.v1.Health", reflection.SERVICE_NAME})

_Context = grpc.aio.ServicerContext[Any, Any]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
#: The tenants that a message names.
_Names = Callable[[Any], Iterable[str]]


class Rule(NamedTuple):
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

    def scope_for(self, caller: Caller) -> int:
        """What this caller must have been given."""
        acts = caller.kind is Kind.EDGE and caller.tenant
        return self.acting_scope if acts and self.acting_scope else self.scope


#: Who calls before it is known.
_NOBODY = Caller(Kind.ANYBODY)

#: For RPCs of which the contract does not say what they take.
NOBODYS = Rule(SCOPE_UNSPECIFIED)


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

#: Where messages that stream in name their tenants.
_STREAMED: dict[str, tuple[str, _Names, bool]] = {
    "trunkline.v1.AttachRequest": ("hello.tenant", _of_hello, False),
    "trunkline.v1.BroadcastManyRequest": ("requests.request.address.tenant", _of_batch, True),
}


def rule_of(method: MethodDescriptor) -> Rule:
    """The rule of an RPC; NOBODYS where the contract has none."""
    scope = method.GetOptions().Extensions[requires]
    message = method.input_type
    if scope == SCOPE_UNSPECIFIED:
        return NOBODYS
    if message.full_name in _STREAMED:
        return Rule(scope, *_STREAMED[message.full_name])
    for field in ("tenant", "address.tenant"):
        if not method.client_streaming and _has(message, field):
            acting = _BY_CLIENTS.get(method.full_name, 0)
            says = method.full_name in _SAYING
            return Rule(scope, field, _of_field(field), acting_scope=acting, says=says)
    return Rule(scope) if scope in (SCOPE_OPERATOR, SCOPE_LINK) else NOBODYS


def _has(message: Descriptor | None, path: str) -> bool:
    for name in path.split("."):
        if message is None or name not in message.fields_by_name:
            return False
        message = message.fields_by_name[name].message_type
    return True


class Guard(grpc.aio.ServerInterceptor):
    """The one interceptor of a server. It refuses before a servicer sees the call, or a message of it."""

    def __init__(self, shell: Shell, operator_key: str, proof: Proof) -> None:
        self.tenants = shell.core.directory.tenants
        self.keys = shell.core.api_keys
        self.callers = Callers(self.keys, operator_key, proof)
        self.refusals = Refusals("a call was refused")
        #: Calls that are refused for no tenant.
        self.strangers = Resting()
        self._guarded: dict[str, _Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """See ServerInterceptor."""
        handler = await continuation(handler_call_details)
        path = str(handler_call_details.method)
        service, _, rpc = path[1:].partition("/")
        # There is none for what nobody serves.
        if handler is None or service in PUBLIC:
            return handler
        if path not in self._guarded:
            self._guarded[path] = self._guard(handler, _rule_at(service, rpc), rpc)
        return self._guarded[path]

    def _guard(self, handler: _Handler, rule: Rule, rpc: str) -> _Handler:
        streams = handler.request_streaming
        kind = f"{'stream' if streams else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
        serve = getattr(handler, kind)

        async def guarded(request: Any, context: _Context) -> Any:
            checks = _Checks(self, rule, rpc, context)
            try:
                checks.opened()
                if streams:
                    await checks.turn(request)
                    read = _Read(context, checks.came)
                    return await serve(aiter(read), read)
                checks.came(request)
                if await checks.turn(request):
                    # In the meantime much may have changed.
                    checks.came(request)
                return await serve(request, context)
            except Refused as reason:
                await refuse(context, reason, checks.call, request)

        make = getattr(grpc, f"{kind}_rpc_method_handler")
        made: _Handler = make(guarded, handler.request_deserializer, handler.response_serializer)
        return made


def _rule_at(service: str, rpc: str) -> Rule:
    try:
        return rule_of(descriptor_pool.Default().FindMethodByName(f"{service}.{rpc}"))
    except KeyError:
        return NOBODYS


class _Checks:
    """The checks of one call: `opened`, then `came` for each message, before anybody else sees it.

    Both raise Refused, and say so in the log. In between, `turn` waits for the turn of a call of its tenant.
    """

    def __init__(self, guard: Guard, rule: Rule, rpc: str, context: _Context) -> None:
        self._guard = guard
        self._rule = rule
        self._rpc = rpc
        self._context = context
        self.call = Call(_NOBODY, guard.strangers)

    def opened(self) -> None:
        """Who calls is found out, and told to whom it concerns."""
        try:
            call = self.call = Call(self._guard.callers.caller(self._context), self._guard.strangers)
            CALL.set(call)
            if not self._rule.field:
                call.tenant = ""
                call.caller.check(self._rule.scope, "", None)
            elif call.caller.tenant:
                # Whatever it asks for: its own tenant is all that it may ask for.
                call.caller.check(self._rule.scope_for(call.caller), call.caller.tenant, None)
        except Refused as reason:
            self._say(reason)
            raise

    def came(self, message: Any) -> None:
        """A message was read."""
        try:
            self._check(message)
        except Refused as reason:
            self._say(reason)
            raise

    async def turn(self, request: Any) -> bool:
        """Wait for the call's turn among those for its tenant; returns whether it had to wait.

        Of streams only those take a turn that show whose they are when they are opened, and of the operator's
        calls only those that say something. Raises Refused RATE_LIMITED.
        """
        call = self.call
        if call.concerns is None:
            call.concerns = self._guard.tenants.get(call.tenant)
        tenant, size = call.concerns, size_of(request)
        if tenant is None:
            return False
        waited = False
        if call.caller.kind is not Kind.OPERATOR:
            waited = await turn(tenant.calls, size, self._context)
        if self._rule.says and await turn(tenant.says, size, self._context):
            waited = True
        return waited

    def _check(self, message: Any) -> None:
        call, rule = self.call, self._rule
        caller = call.caller
        if caller.key_id and caller.key_id not in self._guard.keys:
            # Since it was opened; what is not yet known to the shell it cannot end.
            raise catalogue.UNAUTHORIZED.refused(problem="the API key was revoked")
        scope = rule.scope_for(caller)
        for name in rule.names(message):
            if not name:
                if not rule.is_batch:
                    raise catalogue.INVALID_ARGUMENT.refused(field=rule.field, problem="must be set")
                continue
            tenant = self._guard.tenants.get(name)
            caller.check(scope, name, tenant)
            if not rule.is_batch:
                call.tenant = call.tenant or name
                # Not before: what is refused until then may be another tenant's doing.
                call.concerns = tenant

    def _say(self, reason: Refused) -> None:
        if reason.entry not in (catalogue.UNAUTHORIZED, catalogue.FORBIDDEN):
            return
        self._guard.refusals.say(
            rpc=self._rpc,
            code=reason.entry.code,
            peer=self._context.peer(),
            remote_ip=_address(remote_ip(self._context)),
            key_id=self.call.caller.key_id,
        )


def _address(text: str) -> str:
    """An address; empty for anything else that a caller may have said."""
    try:
        return str(ip_address(text))
    except ValueError:
        return ""


class _Read:
    """A call's context whose messages are checked when they are read, in whichever way."""

    def __init__(self, context: _Context, came: Callable[[Any], None]) -> None:
        self._context = context
        self._came = came
        self.write = context.write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        """See ServicerContext. Raises Refused."""
        message = await self._context.read()
        if message is not grpc.aio.EOF:
            self._came(message)
        return message

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message
