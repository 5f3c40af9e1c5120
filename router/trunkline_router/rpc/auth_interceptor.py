"""Admits or refuses every RPC: identity, permission, rate limits.

The contract's options `requires` and `client_right` state the permission that an RPC takes; its request
names the tenant. An RPC without a rule is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address
from typing import Any, TypeAlias

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import SCOPE_OPERATOR
from trunkline.v1.catalogue import Refused
from trunkline_runtime.message_outline import TooManyItems, check_items
from trunkline_runtime.refusal_log import RefusalLog
from trunkline_runtime.token_bucket import RateLimit, TokenBucket

from trunkline_router.active_call import ACTIVE_CALL, ActiveCall
from trunkline_router.audit_trail import AuditTrail
from trunkline_router.core.tenants.callers import Caller, CallerKind
from trunkline_router.core.tenants.fair_call_queue import FairCallQueue, Tarpit
from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.log.interface import LogUnavailable
from trunkline_router.rpc.call_queueing import wait_in_queue
from trunkline_router.rpc.caller_resolver import CallerResolver, EdgeVerifier, remote_ip
from trunkline_router.rpc.method_rules import MethodRule, rule_at
from trunkline_router.rpc.status import refuse
from trunkline_router.rpc.tenant_lock import PerTenantLock
from trunkline_router.runtime import RouterRuntime

_log = structlog.get_logger()

_Context = grpc.aio.ServicerContext[Any, Any]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Deserialize = Callable[[bytes], Any]

#: Streams that all callers without a key may open together.
ANONYMOUS_STREAMS_PER_S = 1000

#: Larger requests have their items counted before they are parsed. Streamed messages, whose usual size is
#: that of a batch, are smaller.
LARGE_REQUEST_BYTES = 64 << 10
LARGE_STREAMED_BYTES = 4 << 20
#: Items of such a request: more than any valid one has, because lines of text in a Struct count.
MAX_ITEMS = 65_536

#: The caller until it is resolved.
_UNRESOLVED = Caller(CallerKind.ANYBODY)


class AuthInterceptor:
    """Admits the calls of one runtime. A servicer sees only admitted calls, and only checked messages."""

    def __init__(
        self, runtime: RouterRuntime, operator_key: str, edge_verifier: EdgeVerifier, audit: AuditTrail
    ) -> None:
        self._runtime = runtime
        #: Calls in progress, each by its task.
        self._calls: set[asyncio.Task[Any]] = set()
        self._has_ended = False
        self.tenants = runtime.core.directory.tenants
        self.keys = runtime.core.api_keys
        self.callers = CallerResolver(self.keys, operator_key, edge_verifier)
        self.audit = audit
        self.refusals = RefusalLog("a call was refused")
        #: For callers without a key: delayed refusals, and admission of the streams they open.
        self.anonymous_tarpit = Tarpit()
        self.anonymous_streams = FairCallQueue(TokenBucket(), "callers without an API key")
        self.anonymous_streams.rate = RateLimit(ANONYMOUS_STREAMS_PER_S, unit="streams")
        self.tenant_lock = PerTenantLock()

    def intercept(self, handler: _Handler, service: str, rpc: str) -> _Handler:
        """Wrap the handler of an RPC in the admission of its calls."""
        rule = rule_at(service, rpc)
        is_stream = handler.request_streaming
        kind = f"{'stream' if is_stream else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
        serve = getattr(handler, kind)
        deserialize: Any = handler.request_deserializer

        async def serve_checked(request: Any, context: _Context) -> Any:
            admission = CallAdmission(self, rule, rpc, context, deserialize, is_stream=is_stream)
            task = asyncio.current_task()
            assert task is not None
            self._calls.add(task)
            try:
                await self._runtime.wait_until_owned()
                admission.identify()
                if is_stream:
                    await admission.admit_stream()
                    checked = CheckedContext(context, admission)
                    return await serve(aiter(checked), checked)
                message = await admission.admit_unary(request)
                if not rule.is_exclusive or admission.call.caller.kind is CallerKind.OPERATOR:
                    response = await serve(message, context)
                else:
                    async with self.tenant_lock.acquire(admission.call.tenant):
                        admission.check(message)
                        response = await serve(message, context)
                if rule.is_audited and not admission.call.is_recorded:
                    await self._record_unchanged(admission.call, rpc)
                if rule.is_read:
                    # While in doubt: another router may have changed what was read.
                    await self._runtime.wait_until_owned()
                return response
            except Refused as reason:
                await refuse(context, reason, admission.call)
            except asyncio.CancelledError:
                if not self._has_ended:
                    raise
                # Without details: nobody knows whether it was carried out.
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the router ended the call unanswered")
            finally:
                self._calls.discard(task)

        # Requests come as bytes: parsing one costs more than identifying its caller, and its size is known.
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        checked: _Handler = make(serve_checked, None, handler.response_serializer)
        return checked

    async def end_calls(self, grace_s: float) -> None:
        """Wait for the calls in progress, at most `grace_s`; end the others, whose outcome is unknown."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=grace_s)
        self._has_ended = True
        for task in self._calls:
            task.cancel()
        if self._calls:
            await asyncio.wait(self._calls)

    async def _record_unchanged(self, call: ActiveCall, rpc: str) -> None:
        """Record an audited call that changed nothing, such as the suspension of a suspended tenant."""
        try:
            await self.audit.write(self.audit.record(rpc, call.tenant, tenant=call.tenant))
        except LogUnavailable:
            # Nothing happened that must be on record.
            _log.warning("an audited call that changed nothing was not recorded", rpc=rpc)


class CallAdmission:
    """Admission of one call: `identify`, then `admit_unary` or `admit_stream`.

    Each message of an admitted stream goes through `read`. Every method raises Refused; refusals for missing
    permission are logged.
    """

    def __init__(
        self,
        interceptor: AuthInterceptor,
        rule: MethodRule,
        rpc: str,
        context: _Context,
        deserialize: _Deserialize,
        *,
        is_stream: bool,
    ) -> None:
        self._interceptor = interceptor
        self._rule = rule
        self._rpc = rpc
        self._context = context
        self._deserialize = deserialize
        self._is_stream = is_stream
        #: Tenant that the request named last, if there is one of this name.
        self._named_tenant = ""
        self.call = self._new_call(_UNRESOLVED)

    def _new_call(self, caller: Caller) -> ActiveCall:
        return ActiveCall(caller, self._interceptor.anonymous_tarpit, is_stream=self._is_stream)

    def identify(self) -> None:
        """Resolve the caller, set ACTIVE_CALL, and check what can be checked without the request."""
        interceptor, rule = self._interceptor, self._rule
        try:
            source = interceptor.callers.source(self._context) if rule.is_audited else ""
            self.call.source = source
            caller = interceptor.callers.resolve(self._context)
            call = self.call = self._new_call(caller)
            call.source = source
            call.caller_tenant = interceptor.tenants.get(caller.tenant)
            ACTIVE_CALL.set(call)
            self._check_proof()
            if not rule.tenant_field:
                call.tenant = ""
                caller.authorize(rule.scope, "", None)
            elif caller.tenant:
                # Whatever the request names, this is the only tenant that the caller may name.
                caller.authorize(rule.scope_for(caller), caller.tenant, None, rule.client_right)
            call.charged_tenant = call.caller_tenant
        except Refused as reason:
            self._log_refusal(reason)
            raise

    async def admit_stream(self) -> None:
        """Wait until the rate limiter admits a stream, by the caller's tenant or among anonymous callers."""
        call = self.call
        if call.caller_tenant is not None:
            await wait_in_queue(call.caller_tenant.call_queue, 0, self._context)
            self._check_proof()
        elif call.caller.kind is CallerKind.ANYBODY:
            await wait_in_queue(self._interceptor.anonymous_streams, 0, self._context)

    async def admit_unary(self, raw: bytes) -> Any:
        """Wait until the rate limiter admits the call, then parse, check and return its request."""
        call = self.call
        call.request_bytes = len(raw)
        if call.caller_tenant is not None:
            # Parsed only once the call is admitted.
            if call.caller.client is not None:
                # As a frame of the client: at once or not at all, and without a place among the backends.
                call.caller_tenant.check_active()
                call.caller_tenant.take(len(raw), time.monotonic())
            else:
                await self._wait(call.caller_tenant)
        request = self.read(raw)
        if (
            call.caller_tenant is None
            and call.charged_tenant is not None
            and await self._wait(call.charged_tenant)
        ):
            # Permissions may have changed during the wait.
            self.check(request)
        return request

    async def _wait(self, tenant: Tenant) -> bool:
        """Wait in the tenant's queues. Returns whether the call had to wait."""
        waited = False
        if self.call.caller.kind is not CallerKind.OPERATOR:
            waited = await wait_in_queue(tenant.call_queue, self.call.request_bytes, self._context)
        if self._rule.is_publishing and await wait_in_queue(
            tenant.publish_queue, self.call.request_bytes, self._context
        ):
            waited = True
        return waited

    def read(self, raw: bytes) -> Any:
        """Parse a message and check it. Sets the call's `request_bytes`."""
        self.call.request_bytes = len(raw)
        try:
            is_large = len(raw) > (LARGE_STREAMED_BYTES if self._is_stream else LARGE_REQUEST_BYTES)
            if is_large and self._rule.request_type is not None:
                check_items(self._rule.request_type, raw, MAX_ITEMS)
            message = self._deserialize(raw)
        except TooManyItems as too_many:
            raise catalogue.INVALID_ARGUMENT.refused(field="request", problem=str(too_many)) from None
        except DecodeError:
            problem = "cannot be parsed as the request of this RPC"
            raise catalogue.INVALID_ARGUMENT.refused(field="request", problem=problem) from None
        self.check(message)
        return message

    def check(self, message: Any) -> None:
        """Check that the caller may send this message."""
        try:
            self._check(message)
        except Refused as reason:
            self._log_refusal(reason)
            raise

    def _check(self, message: Any) -> None:
        call, rule = self.call, self._rule
        caller = call.caller
        self._check_proof()
        scope = rule.scope_for(caller)
        for name in rule.tenant_names(message):
            if not name and rule.scope_for_all:
                caller.authorize(rule.scope_for_all, "", None)
                continue
            if not name:
                if scope == SCOPE_OPERATOR:
                    caller.authorize(scope, "", None)
                if not rule.is_batch:
                    raise catalogue.INVALID_ARGUMENT.refused(field=rule.tenant_field, problem="must be set")
                continue
            tenant = self._interceptor.tenants.get(name)
            # Only of a known tenant: callers choose the name freely.
            self._named_tenant = name if tenant is not None else ""
            caller.authorize(scope, name, tenant, rule.client_right)
            if not rule.is_batch:
                call.tenant = call.tenant or name
                # Only now: a caller without permission must not count against another tenant.
                call.charged_tenant = tenant

    def _check_proof(self) -> None:
        """Check that the API key, or the client's token or secret, is not revoked.

        The runtime ends only streams that are registered with it.
        """
        caller, tenant = self.call.caller, self.call.caller_tenant
        if caller.key_id and caller.key_id not in self._interceptor.keys:
            raise catalogue.UNAUTHORIZED.refused(problem="the API key was revoked")
        if tenant is None:
            return
        client = caller.token_client
        if (caller.by_secret and tenant.revocations.revoke_secrets) or (
            client is not None and tenant.revocations.revokes(client.user, client.permissions)
        ):
            raise catalogue.TOKEN_REVOKED.refused()

    def _log_refusal(self, reason: Refused) -> None:
        if reason.entry not in (catalogue.UNAUTHORIZED, catalogue.FORBIDDEN):
            return
        if self._rule.is_audited:
            self._interceptor.audit.refused(self.call, self._rpc, self._named_tenant, reason)
        self._interceptor.refusals.write(
            rpc=self._rpc,
            code=reason.entry.code,
            peer=self._context.peer(),
            remote_ip=_ip_or_empty(remote_ip(self._context)),
            key_id=self.call.caller.key_id,
        )


def _ip_or_empty(text: str) -> str:
    """The text if it is an IP address, else empty: callers choose it freely."""
    try:
        return str(ip_address(text))
    except ValueError:
        return ""


class CheckedContext:
    """A stream's context that parses and checks each message when the servicer reads it."""

    def __init__(self, context: _Context, admission: CallAdmission) -> None:
        self._context = context
        self._admission = admission
        self.write = context.write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        """See ServicerContext. Raises Refused."""
        raw = await self._context.read()
        return raw if raw is grpc.aio.EOF else self._admission.read(raw)

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message
