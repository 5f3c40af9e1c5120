"""The options of TenantLimits are complete, and the router's defaults are theirs."""

from __future__ import annotations

import pytest
from trunkline.v1.catalogue import ENTRIES
from trunkline.v1.tenant_limits import TENANT_LIMITS, TenantLimit, default_limits
from trunkline.v1.tenant_pb2 import TenantLimits
from trunkline_router.core.tenants.tenant import DEFAULTS


def test_every_field_is_a_limit() -> None:
    assert list(TENANT_LIMITS) == [field.name for field in TenantLimits.DESCRIPTOR.fields]


@pytest.mark.parametrize("limit", TENANT_LIMITS.values(), ids=TENANT_LIMITS)
def test_each_limit_has_a_default_a_unit_a_code_and_a_comment(limit: TenantLimit) -> None:
    assert 0 < limit.default <= limit.max_value
    assert limit.unit
    assert limit.is_size is ("bytes" in limit.name)
    assert limit.unit.endswith("/s") is limit.name.endswith("_per_s")
    assert limit.exceeded in ENTRIES.values()
    assert limit.exceeded.code in limit.comment or limit.exceeded.code == "RATE_LIMITED"
    TenantLimits(**{limit.name: limit.max_value})


def test_the_routers_defaults_are_the_contracts() -> None:
    assert default_limits() == DEFAULTS
    assert default_limits(conversations=7).conversations == 7
