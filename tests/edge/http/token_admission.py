"""Verification of the tokens of HTTP callers, without an edge around it."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from trunkline_edge.admission import Admission
from trunkline_edge.auth.admission_policy import AdmissionPolicy
from trunkline_edge.auth.jwks import Fetch, JwksCache
from trunkline_edge.core.edge import EdgeCore
from trunkline_edge.core.limits import EdgeLimits
from trunkline_edge.dialects.tenant_policies import TenantPolicies
from trunkline_edge.http.token_callers import TokenCallers


async def no_fetch(url: str) -> bytes:
    """Fetches no JWK Set."""
    raise OSError(url)


def admission_of(
    tenants: TenantPolicies, fetch: Fetch = no_fetch, now_s: Callable[[], float] = time.time
) -> Admission:
    """An admission of callers to these tenants; apply their policies to it."""
    runtime: Any = SimpleNamespace(core=EdgeCore(EdgeLimits()), tenants=tenants)
    return Admission(runtime, AdmissionPolicy(tenants, JwksCache(fetch, time.monotonic), now_s))


def token_callers(tenants: TenantPolicies, frame_bytes: int = 1 << 20) -> TokenCallers:
    """Callers of these tenants with tokens."""
    return TokenCallers(admission_of(tenants), tenants, frame_bytes)
