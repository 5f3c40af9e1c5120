"""The RPC that the current task serves: its caller and the tenant it counts for."""

from __future__ import annotations

from contextvars import ContextVar

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused

from trunkline_router.core.tenants.callers import Caller, CallerKind
from trunkline_router.core.tenants.fair_call_queue import Tarpit
from trunkline_router.core.tenants.tenant import Tenant


class ActiveCall:
    """One RPC from admission to its last response."""

    __slots__ = (
        "_anonymous_tarpit",
        "caller",
        "caller_tenant",
        "charged_tenant",
        "is_recorded",
        "is_stream",
        "request_bytes",
        "source",
        "tenant",
    )

    def __init__(self, caller: Caller, anonymous_tarpit: Tarpit, *, is_stream: bool = False) -> None:
        self.caller = caller
        self._anonymous_tarpit = anonymous_tarpit
        #: Name of the tenant that the whole call is for; empty while unknown, or if it is for several.
        self.tenant = caller.tenant
        #: The tenant of the caller's key, if the caller has one.
        self.caller_tenant: Tenant | None = None
        #: The tenant whose calls and refusals include this one. Set once the caller's permission was checked;
        #: None for calls for several tenants.
        self.charged_tenant: Tenant | None = None
        #: The caller sends any number of messages.
        self.is_stream = is_stream
        #: Size of the request, or of a stream's last message; 0 before it is read.
        self.request_bytes = 0
        #: Address of the caller, and of the edge if one passed the call on; empty before it is resolved.
        self.source = ""
        #: The audit trail holds a record of it.
        self.is_recorded = False

    def tarpit_for(self, reason: Refused) -> Tarpit | None:
        """The tarpit that delays this refusal, or None to refuse at once.

        Refusals are delayed if nothing else slows the caller down: calls rejected by the rate limiter, and
        calls rejected before they took anything from it. Operators, clients, whose edge limits them, and
        refusals that the caller did not cause are not delayed.
        """
        is_slowed_down = self.charged_tenant is not None or reason.entry.retryable
        if self.caller.kind in (CallerKind.OPERATOR, CallerKind.CLIENT) or (
            is_slowed_down and reason.entry is not catalogue.RATE_LIMITED
        ):
            return None
        tenant = self.charged_tenant or self.caller_tenant
        return tenant.tarpit if tenant is not None else self._anonymous_tarpit


#: The RPC served by the current task, set by the AuthInterceptor.
ACTIVE_CALL: ContextVar[ActiveCall] = ContextVar("active_call")
#: Stands in for RPCs that bypass the interceptor.
UNCHECKED_CALL = ActiveCall(Caller(CallerKind.ANYBODY), Tarpit())
