"""Decides who may call what: every RPC passes the guard, and none gets by without a rule.

What a caller must have been given is said in the contract, by the option `requires` of the RPC, and for
which tenant it asks is said in its request.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline_runtime.refusal_log import RefusalLog
from trunkline_runtime.token_bucket import RateLimit, TokenBucket

from trunkline_router.core.tenants.api_keys import Caller, CallerKind
from trunkline_router.core.tenants.fair_call_queue import FairCallQueue, Tarpit
from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.rpc.caller_resolver import CallerResolver, EdgeVerifier, remote_ip
from trunkline_router.rpc.method_rules import MethodRule, rule_at
from trunkline_router.rpc.status import refuse
from trunkline_router.rpc.tenant_lock import PerTenantLock, turn
from trunkline_router.runtime import CALL, PendingCall, RouterRuntime

#: Services that anybody may call: they tell that a router is there, and what the contract is.
PUBLIC = frozenset({"grpc.health.v1.Health", reflection.SERVICE_NAME})

_Context = grpc.aio.ServicerContext[Any, Any]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

#: So many streams a second may be opened by all who show no key.
STRANGERS_STREAMS_PER_S = 1000

#: Who calls before it is known.
_NOBODY = Caller(CallerKind.ANYBODY)


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """The one interceptor of a server. It refuses before a servicer sees the call, or a message of it."""

    def __init__(self, shell: RouterRuntime, operator_key: str, proof: EdgeVerifier) -> None:
        self.tenants = shell.core.directory.tenants
        self.keys = shell.core.api_keys
        self.callers = CallerResolver(self.keys, operator_key, proof)
        self.refusals = RefusalLog("a call was refused")
        #: Of callers who show no key: what is refused, and streams that they open.
        self.strangers = Tarpit()
        self.strangers_streams = FairCallQueue(TokenBucket(), "those who show no key")
        self.strangers_streams.rate = RateLimit(STRANGERS_STREAMS_PER_S, of="streams")
        self.one_by_one = PerTenantLock()
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
            self._guarded[path] = self._guard(handler, rule_at(service, rpc), rpc)
        return self._guarded[path]

    def _guard(self, handler: _Handler, rule: MethodRule, rpc: str) -> _Handler:
        streams = handler.request_streaming
        kind = f"{'stream' if streams else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
        serve = getattr(handler, kind)

        async def guarded(request: Any, context: _Context) -> Any:
            checks = _Checks(self, rule, rpc, context)
            try:
                checks.opened()
                if streams:
                    await checks.stream()
                    read = _Read(context, checks.came)
                    return await serve(aiter(read), read)
                message = await checks.unary(request, deserialize)
                if not rule.alone or checks.call.caller.kind is CallerKind.OPERATOR:
                    return await serve(message, context)
                async with self.one_by_one.of(checks.call.tenant):
                    checks.came(message)
                    return await serve(message, context)
            except Refused as reason:
                await refuse(context, reason, checks.call)

        deserialize: Any = handler.request_deserializer
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        # The request of a unary call comes as bytes: reading it costs more than knowing who sent it.
        made: _Handler = make(guarded, deserialize if streams else None, handler.response_serializer)
        return made


class _Checks:
    """The checks of one call: `opened`, then `stream` or `unary`, then `came` for each message of a stream.

    All raise Refused, and what is for lack of a right is said in the log.
    """

    def __init__(self, guard: AuthInterceptor, rule: MethodRule, rpc: str, context: _Context) -> None:
        self._guard = guard
        self._rule = rule
        self._rpc = rpc
        self._context = context
        self.call = PendingCall(_NOBODY, guard.strangers)

    def opened(self) -> None:
        """Who calls is found out, and told to whom it concerns."""
        try:
            call = self.call = PendingCall(self._guard.callers.caller(self._context), self._guard.strangers)
            call.home = self._guard.tenants.get(call.caller.tenant)
            CALL.set(call)
            if not self._rule.field:
                call.tenant = ""
                call.caller.check(self._rule.scope, "", None)
            elif call.caller.tenant:
                # Whatever it asks for: its own tenant is all that it may ask for.
                call.caller.check(self._rule.scope_for(call.caller), call.caller.tenant, None)
            call.concerns = call.home
        except Refused as reason:
            self._say(reason)
            raise

    async def stream(self) -> None:
        """Waits until it is the turn of a stream that is opened: with a key, or with none."""
        call = self.call
        if call.home is not None:
            await turn(call.home.calls, 0, self._context)
            self._check_key()
        elif call.caller.kind is CallerKind.ANYBODY:
            await turn(self._guard.strangers_streams, 0, self._context)

    async def unary(self, raw: bytes, deserialize: Callable[[bytes], Any]) -> Any:
        """Waits until it is the call's turn; returns its request, which was checked then."""
        call = self.call
        call.size = len(raw)
        if call.home is not None:
            # Not even read before its turn.
            await self._turn(call.home)
        try:
            request = deserialize(raw)
        except DecodeError:
            problem = "cannot be read as what the RPC takes"
            raise catalogue.INVALID_ARGUMENT.refused(field="request", problem=problem) from None
        self.came(request)
        if call.home is None and call.concerns is not None and await self._turn(call.concerns):
            # In the meantime much may have changed.
            self.came(request)
        return request

    async def _turn(self, tenant: Tenant) -> bool:
        """Wait for the call's turn among those for its tenant; returns whether it had to wait."""
        waited = False
        if self.call.caller.kind is not CallerKind.OPERATOR:
            waited = await turn(tenant.calls, self.call.size, self._context)
        if self._rule.says and await turn(tenant.says, self.call.size, self._context):
            waited = True
        return waited

    def came(self, message: Any) -> None:
        """A message was read."""
        try:
            self._check(message)
        except Refused as reason:
            self._say(reason)
            raise

    def _check(self, message: Any) -> None:
        call, rule = self.call, self._rule
        caller = call.caller
        self._check_key()
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

    def _check_key(self) -> None:
        key_id = self.call.caller.key_id
        if key_id and key_id not in self._guard.keys:
            # Since the call was opened; what is not yet known to the shell it cannot end.
            raise catalogue.UNAUTHORIZED.refused(problem="the API key was revoked")

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
