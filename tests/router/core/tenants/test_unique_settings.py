"""Pipelines and secrets are one tenant's only, whatever is current, changed, passed on and deleted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import ClientAuth, TenantSettings
from trunkline_router.core.tenants.unique_settings import UniqueSettings

NAMES = st.sampled_from("abc")
VALUES = st.sets(st.sampled_from(["x", "y", "z"]), max_size=2)
SETTINGS = st.tuples(VALUES, VALUES)
WANTED = st.dictionaries(NAMES, SETTINGS, max_size=3)

_Values = tuple[set[str], set[str]]


def settings(values: _Values) -> TenantSettings:
    pipelines, digests = values
    return TenantSettings(pipelines=pipelines, client_auth=ClientAuth(token_digests=digests))


def clash(tenants: dict[str, _Values]) -> bool:
    """Return whether any two tenants share a value."""
    return any(
        this != other and (one[0] & another[0] or one[1] & another[1])
        for this, one in tenants.items()
        for other, another in tenants.items()
    )


@given(st.lists(st.one_of(WANTED, NAMES), max_size=12))
def test_no_two_tenants_share_a_value(steps: list[dict[str, _Values] | str]) -> None:
    unique, current = UniqueSettings(), dict[str, _Values]()
    for step in steps:
        if isinstance(step, str):
            unique.remove(step)
            current.pop(step, None)
            continue
        wanted = {name: settings(values) for name, values in step.items()}
        try:
            unique.check(wanted)
        except Refused:
            assert clash(current | step)
            continue
        assert not clash(current | step)
        current |= step
        for name, each in wanted.items():
            unique.put(name, each)


def test_a_refusal_names_the_owner_and_the_other_tenant() -> None:
    unique = UniqueSettings()
    unique.put("a", settings(({"x"}, {"y"})))
    with pytest.raises(Refused, match=r"settings\.pipelines: pipeline x is reserved by two tenants, a and b"):
        unique.check({"b": settings(({"x"}, set()))})
    with pytest.raises(Refused, match=r"token_digests: a token is shared by two tenants, a and b"):
        unique.check({"b": settings((set(), {"y"}))})
    unique.check({"a": settings(({"z"}, set())), "b": settings(({"x"}, {"y"}))})
