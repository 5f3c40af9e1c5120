"""May this HTTP request do something for a tenant?"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

from starlette.requests import Request
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused

from edge.dialects.dialect import bearer
from edge.dialects.tenants import Tenants
from edge.http.calls import CallFailed

#: Raises CallFailed where the request may do nothing for this tenant.
Authorize = Callable[[Request, str], None]

#: Where one of them is set the request came through a proxy, and its own address says nothing.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


def authorizer(tenants: Tenants, *, open_to_any: bool) -> Authorize:
    """A tenant with tokens needs one of them; any other is open to this machine, or to all."""

    def authorize(request: Request, tenant: str) -> None:
        headers = request.headers
        try:
            if tenants.needs_token(tenant):
                tenants.admit(tenant, bearer(headers) or headers.get("x-api-key", ""))
            elif not open_to_any and not _is_local(request):
                problem = f"tenant {tenant} has no token, so it is open to requests from this machine only"
                raise catalogue.UNAUTHORIZED.refused(problem=problem)
        except Refused as refused:
            raise CallFailed.of(refused) from None

    return authorize


def _is_local(request: Request) -> bool:
    if request.client is None or any(name in request.headers for name in _FORWARDED):
        return False
    try:
        return ip_address(request.client.host).is_loopback
    except ValueError:
        return False
