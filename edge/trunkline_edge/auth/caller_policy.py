"""The one decision about callers: which source needs which proof, for sockets and all HTTP routes alike."""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import SCOPE_OPERATOR
from trunkline.v1.edge_service_pb2 import TenantPolicy
from trunkline.v1.tenant_pb2 import OPENNESS_LOOPBACK, TenantSettings
from trunkline_runtime.tenant_policy import check_open_to_call, is_open, unauthenticated

from trunkline_edge.auth.request_source import RequestSource

#: In place of a scope, for a client that connects.
CONNECT = 0

#: Longest origin that a refusal quotes.
_MAX_QUOTED_CHARS = 256


def check_caller(policy: TenantPolicy, source: RequestSource, scope: int, *, has_proof: bool) -> None:
    """Decide whether a request may proceed. `has_proof` if it presents a token or a key, verified or not yet.

    Raises Refused ORIGIN_FORBIDDEN for the page of another site, and UNAUTHORIZED if proof is required and
    there is none.
    """
    settings = policy.settings
    # The operator's own pages are no tenant's.
    if scope != SCOPE_OPERATOR or not has_proof:
        check_page(settings, source, has_proof=has_proof)
    if has_proof:
        return
    if scope == SCOPE_OPERATOR:
        raise catalogue.UNAUTHORIZED.refused(problem="the operator's key must be given")
    if scope != CONNECT:
        check_open_to_call(policy.tenant, settings.open_to, scope, source.is_local)
    elif not is_open(settings.open_to, source.is_local):
        raise unauthenticated(policy.tenant, settings.open_to)


def check_page(settings: TenantSettings, source: RequestSource, *, has_proof: bool) -> None:
    """Raises Refused ORIGIN_FORBIDDEN for the page of another site."""
    if source.origin and source.origin in settings.origins:
        return
    if settings.origins:
        is_forbidden = bool(source.origin) or (source.is_cross_site and not has_proof)
    else:
        # A tenant open to this machine is not open to every page that a browser on it displays.
        is_forbidden = source.is_foreign_page and not has_proof and settings.open_to == OPENNESS_LOOPBACK
    if is_forbidden:
        origin = source.origin[:_MAX_QUOTED_CHARS] or "of another site"
        raise catalogue.ORIGIN_FORBIDDEN.refused(origin=origin)
