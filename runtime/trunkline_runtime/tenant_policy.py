"""What is declared of a tenant, and what it means: at edges and routers alike."""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import SCOPE_BROADCAST, SCOPE_HISTORY, SCOPE_PRESENCE
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import OPENNESS_ANYBODY, OPENNESS_LOOPBACK, TENANT_STATE_SUSPENDED

from trunkline_runtime.token_bucket import RateLimit

#: What a client's token, or the secret that clients share, is good for where an edge calls for its bearer.
CLIENT_SCOPES = frozenset({SCOPE_BROADCAST, SCOPE_HISTORY, SCOPE_PRESENCE})


def is_open(openness: int, is_local: bool) -> bool:
    """Whether somebody who shows no proof may come in; `is_local` is from the same machine."""
    return openness == OPENNESS_ANYBODY or (is_local and openness == OPENNESS_LOOPBACK)


def inactive(name: str, state: int) -> Refused:
    """The refusal of what is asked of a tenant that takes no part."""
    if state == TENANT_STATE_SUSPENDED:
        return catalogue.TENANT_SUSPENDED.refused(tenant=name)
    return catalogue.UNKNOWN_TENANT.refused(tenant=name)


def rate_limited(rate: RateLimit, wait_s: float, whose: str) -> Refused:
    """The refusal of what came too fast; `wait_s` is after how long it would not have been."""
    return catalogue.RATE_LIMITED.refused(
        retry_after_ms=max(1, round(wait_s * 1000)), limit=rate.sentence, whose=whose
    )
