"""Options of TenantLimits: each field has them, and default limits are derived from them."""

from __future__ import annotations

import pytest
from trunkline.v1.catalogue import ENTRIES
from trunkline.v1.tenant_limits import TENANT_LIMITS, TenantLimit, default_limits
from trunkline.v1.tenant_pb2 import TenantLimits


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


def test_default_limits_hold_the_contracts_values_except_those_changed() -> None:
    assert {field.name: value for field, value in default_limits(conversations=7).ListFields()} == {
        **{limit.name: limit.default for limit in TENANT_LIMITS.values()},
        "conversations": 7,
    }
