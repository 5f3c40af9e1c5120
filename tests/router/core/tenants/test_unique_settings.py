"""Pipelines and secrets are one tenant's only, whatever is declared, changed, passed on and deleted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import ClientAuth, TenantSettings
from trunkline_router.core.tenants.unique_settings import UniqueSettings

NAMES = st.sampled_from("abc")
SAID = st.sets(st.sampled_from(["x", "y", "z"]), max_size=2)
SETTINGS = st.tuples(SAID, SAID)
WANTED = st.dictionaries(NAMES, SETTINGS, max_size=3)

_Said = tuple[set[str], set[str]]


def settings(said: _Said) -> TenantSettings:
    pipelines, digests = said
    return TenantSettings(pipelines=pipelines, client_auth=ClientAuth(token_digests=digests))


def clash(tenants: dict[str, _Said]) -> bool:
    """Compares all with all."""
    return any(
        this != other and (one[0] & another[0] or one[1] & another[1])
        for this, one in tenants.items()
        for other, another in tenants.items()
    )


@given(st.lists(st.one_of(WANTED, NAMES), max_size=12))
def test_what_is_one_tenants_is_no_others(steps: list[dict[str, _Said] | str]) -> None:
    claims, declared = UniqueSettings(), dict[str, _Said]()
    for step in steps:
        if isinstance(step, str):
            claims.gone(step)
            declared.pop(step, None)
            continue
        wanted = {name: settings(said) for name, said in step.items()}
        try:
            claims.check(wanted)
        except Refused:
            assert clash(declared | step)
            continue
        assert not clash(declared | step)
        declared |= step
        for name, each in wanted.items():
            claims.set(name, each)


def test_who_has_it_and_who_wants_it_are_told() -> None:
    claims = UniqueSettings()
    claims.set("a", settings(({"x"}, {"y"})))
    with pytest.raises(Refused, match=r"settings\.pipelines: x is given to two tenants, a and b"):
        claims.check({"b": settings(({"x"}, set()))})
    with pytest.raises(Refused, match=r"token_digests: a token is given to two tenants, a and b"):
        claims.check({"b": settings((set(), {"y"}))})
    claims.check({"a": settings(({"z"}, set())), "b": settings(({"x"}, {"y"}))})
