"""Authorization of callers, and API keys."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import (
    RIGHT_CANCEL,
    RIGHT_HISTORY,
    RIGHT_PUBLISH,
    RIGHT_SUBSCRIBE,
    RIGHT_UNSPECIFIED,
    SCOPE_ADMIN,
    SCOPE_ATTACH,
    SCOPE_BROADCAST,
    SCOPE_HISTORY,
    SCOPE_LINK,
    SCOPE_OPERATOR,
    SCOPE_PRESENCE,
    Right,
    Scope,
    TokenHolder,
)
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import (
    OPENNESS_ANYBODY,
    OPENNESS_LOOPBACK,
    OPENNESS_NOBODY,
    OPENNESS_UNSPECIFIED,
    TENANT_STATE_ACTIVE,
    TENANT_STATE_DELETING,
    TENANT_STATE_SUSPENDED,
    TenantLimits,
    TenantSettings,
)
from trunkline_router.core.tenants import api_keys
from trunkline_router.core.tenants.api_keys import ApiKeys
from trunkline_router.core.tenants.callers import Caller, CallerKind, is_local
from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.tenants.token_client import TokenClient
from trunkline_router.core.values.stored_records import StoredTenant
from trunkline_runtime.tenant_policy import CLIENT_SCOPES

TENANT_SCOPES = (SCOPE_BROADCAST, SCOPE_HISTORY, SCOPE_PRESENCE, SCOPE_ATTACH, SCOPE_ADMIN)
RIGHTS = (RIGHT_PUBLISH, RIGHT_SUBSCRIBE, RIGHT_HISTORY, RIGHT_CANCEL)
OPENNESS = (OPENNESS_UNSPECIFIED, OPENNESS_NOBODY, OPENNESS_LOOPBACK, OPENNESS_ANYBODY)
STATES = (TENANT_STATE_ACTIVE, TENANT_STATE_SUSPENDED, TENANT_STATE_DELETING)


def tenant(name: str, openness: Any, state: int = TENANT_STATE_ACTIVE) -> Tenant:
    settings = TenantSettings(open_to=openness).SerializeToString()
    return Tenant(StoredTenant(name, state, settings, 1, 1), TenantLimits())


def answer(caller: Caller, scope: int, name: str, asked: Tenant | None, right: Right.ValueType) -> str:
    """Return the code of the refusal; empty if the caller is authorized."""
    try:
        caller.authorize(scope, name, asked, right)
    except Refused as refused:
        return refused.entry.code
    return ""


def expected(caller: Caller, scope: int, name: str, asked: Tenant | None, right: Right.ValueType) -> str:
    """Return the expected code, with each rule stated once."""
    proved = caller.kind is not CallerKind.ANYBODY and not (
        caller.kind is CallerKind.EDGE and not caller.tenant
    )
    refusal = catalogue.FORBIDDEN.code if proved else catalogue.UNAUTHORIZED.code
    if scope == SCOPE_LINK:
        return "" if caller.kind is CallerKind.EDGE else refusal
    if scope not in (*TENANT_SCOPES, SCOPE_OPERATOR):
        return catalogue.FORBIDDEN.code
    if caller.kind is CallerKind.OPERATOR:
        return ""
    if caller.client is not None:
        # The right decides, whatever the scope.
        return "" if caller.tenant == name and right in caller.client.permissions.rights else refusal
    if scope == SCOPE_OPERATOR:
        return refusal
    if proved:
        return "" if caller.tenant == name and scope in caller.scopes else refusal
    if asked is None:
        return ""
    openness = asked.settings.open_to
    open_now = openness == OPENNESS_ANYBODY or (openness == OPENNESS_LOOPBACK and caller.is_local)
    return "" if open_now and scope != SCOPE_ADMIN else refusal


@st.composite
def callers(draw: st.DrawFn) -> Caller:
    kind = draw(st.sampled_from(CallerKind))
    local = draw(st.booleans())
    if kind is CallerKind.KEY:
        scopes = draw(st.frozensets(st.sampled_from(TENANT_SCOPES), min_size=1))
        return Caller(kind, draw(st.sampled_from("ab")), scopes, "k1")
    if kind is CallerKind.EDGE and draw(st.booleans()):
        return Caller(kind, draw(st.sampled_from("ab")), CLIENT_SCOPES, is_local=local)
    if kind is CallerKind.CLIENT:
        holder = TokenHolder(tenant=draw(st.sampled_from("ab")), user="ann", all_agents=True)
        holder.grants.rights.extend(draw(st.frozensets(st.sampled_from(RIGHTS))))
        return Caller(kind, holder.tenant, is_local=local, client=TokenClient.of(holder))
    return Caller(kind, is_local=local)


@given(
    caller=callers(),
    scope=st.integers(-1, 9),
    name=st.sampled_from("ab"),
    openness=st.sampled_from(OPENNESS),
    state=st.sampled_from(STATES),
    exists=st.booleans(),
    right=st.sampled_from((RIGHT_UNSPECIFIED, *RIGHTS)),
)
def test_each_caller_is_authorized_by_the_rules(
    caller: Caller,
    scope: int,
    name: str,
    openness: Any,
    state: int,
    exists: bool,
    right: Right.ValueType,
) -> None:
    asked = tenant(name, openness, state) if exists else None
    assert answer(caller, scope, name, asked, right) == expected(caller, scope, name, asked, right)


@given(caller=callers(), scope=st.sampled_from(TENANT_SCOPES), openness=st.sampled_from(OPENNESS))
def test_an_authenticated_caller_does_not_learn_which_other_tenants_exist(
    caller: Caller, scope: int, openness: Any
) -> None:
    if caller.tenant != "a":
        return

    def refusal(asked: Tenant | None) -> str:
        with pytest.raises(Refused) as refused:
            caller.authorize(scope, "b", asked)
        assert refused.value.entry is catalogue.FORBIDDEN
        return str(refused.value)

    assert refusal(None) == refusal(tenant("b", openness))


def test_a_refusal_names_the_scope_that_is_missing() -> None:
    key = Caller(CallerKind.KEY, "a", frozenset({SCOPE_BROADCAST}), "k1")
    acting = Caller(CallerKind.EDGE, "a", CLIENT_SCOPES)
    stranger = Caller(CallerKind.ANYBODY)
    for caller, scope in ((key, SCOPE_HISTORY), (acting, SCOPE_ADMIN), (stranger, SCOPE_ATTACH)):
        with pytest.raises(Refused, match=Scope.Name(scope)):
            caller.authorize(scope, "a", tenant("a", OPENNESS_NOBODY))


def test_a_forwarded_caller_is_not_local() -> None:
    here, there = "127.0.0.1", "192.0.2.1"
    for peer in (here, "::1", "127.8.9.1", "::ffff:127.0.0.1"):
        assert is_local(peer, [], is_forwarded=False, is_edge=False)
        assert is_local(peer, [here], is_forwarded=False, is_edge=False)
        for remote in ([there], [here, there], [""], ["localhost"], ["unknown"]):
            assert not is_local(peer, remote, is_forwarded=False, is_edge=True)
        for is_edge in (False, True):
            assert not is_local(peer, [here], is_forwarded=True, is_edge=is_edge)
    for peer in (there, "", "unix", "0.0.0.0"):
        # Addresses in metadata count only from an edge.
        assert not is_local(peer, [here], is_forwarded=False, is_edge=False)
        assert not is_local(peer, [], is_forwarded=False, is_edge=True)
        assert is_local(peer, [here], is_forwarded=False, is_edge=True)
        assert not is_local(peer, [here], is_forwarded=True, is_edge=True)


# API keys


def keys(*of: str) -> tuple[ApiKeys, list[str]]:
    """Return a table with one key of each tenant, and their secrets."""
    table, secrets = ApiKeys(), []
    for at, name in enumerate(of):
        stored, secret = table.create(name, "", [SCOPE_HISTORY], 1000 + at, os.urandom)
        assert table.authenticate(secret, 5000) is None
        table.add(stored)
        secrets.append(secret)
    return table, secrets


def test_a_secret_authenticates_its_tenants_caller_and_is_stored_nowhere() -> None:
    table = ApiKeys()
    stored, secret = table.create("a", "ci", [SCOPE_HISTORY, SCOPE_BROADCAST, SCOPE_HISTORY], 7, os.urandom)
    assert secret.startswith(f"tl_{stored.key_id}_")
    assert secret.removeprefix(f"tl_{stored.key_id}_") not in repr(stored)
    assert stored.scopes == (SCOPE_BROADCAST, SCOPE_HISTORY)
    loaded = ApiKeys()
    loaded.load([stored])
    found = loaded.authenticate(secret, 8)
    assert found == Caller(CallerKind.KEY, "a", frozenset(stored.scopes), stored.key_id)


def test_a_wrong_secret_authenticates_no_caller() -> None:
    table, [a, b] = keys("a", "b")
    half_b = b.rpartition("_")[2]
    of_a_with_b = f"{a.rpartition('_')[0]}_{half_b}"
    for wrong in ("", "tl_", "tl__", a[:-1], a + "0", a.upper(), of_a_with_b, "é" + a, a + "é", a * 100_000):
        assert table.authenticate(wrong, 5000) is None
    assert table.authenticate(a, 5000) is not None


def test_a_key_is_removed_by_its_own_tenant_only() -> None:
    table, [a, b] = keys("a", "b")
    [stored] = table.of_tenant("a")
    assert table.remove("b", stored.key_id) is None
    assert table.authenticate(a, 5000) is not None
    assert table.remove("a", stored.key_id) is not None
    assert stored.key_id not in table
    assert table.authenticate(a, 5000) is None
    assert table.remove("a", stored.key_id) is None
    assert table.take_last_used() == []
    table.remove_tenant("b")
    table.remove_tenant("nobody")
    assert table.authenticate(b, 5000) is None
    assert repr(table) == "<ApiKeys 0 of 0 tenants>"


def test_keys_are_listed_oldest_first() -> None:
    table, _ = keys("a", "b", "a", "a")
    assert [stored.created_ms for stored in table.of_tenant("a")] == [1000, 1002, 1003]
    assert table.of_tenant("nobody") == []


def test_last_use_is_written_once_a_minute() -> None:
    table, [secret, other] = keys("a", "a")
    first, second = table.of_tenant("a")
    for now_ms in (100_000, 100_001, 159_999):
        table.authenticate(secret, now_ms)
    assert table.take_last_used() == [(first.key_id, 100_000)]
    assert table.take_last_used() == []
    table.authenticate(secret, 159_999)
    assert table.take_last_used() == []
    table.authenticate(secret, 160_000)
    table.authenticate(other, 160_001)
    assert table.take_last_used() == [(first.key_id, 160_000), (second.key_id, 160_001)]
    assert [stored.used_ms for stored in table.of_tenant("a")] == [160_000, 160_001]
    # A clock that was set back is accepted.
    table.authenticate(secret, 50_000)
    assert table.take_last_used() == [(first.key_id, 50_000)]


def test_last_uses_that_were_not_written_are_kept_unless_later_ones_prevail() -> None:
    table, [secret, other, gone] = keys("a", "a", "a")
    first, second, third = table.of_tenant("a")
    for each in (secret, other, gone):
        table.authenticate(each, 100_000)
    used = table.take_last_used()
    table.authenticate(other, 200_000)
    table.remove("a", third.key_id)
    table.restore_last_used(used)
    assert dict(table.take_last_used()) == {first.key_id: 100_000, second.key_id: 200_000}


def test_a_tenants_keys_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "MAX_KEYS", 2)
    table, _ = keys("a", "a", "b")
    with pytest.raises(Refused, match="revoke one first"):
        table.create("a", "", [SCOPE_HISTORY], 1, os.urandom)
    table.create("b", "", [SCOPE_HISTORY], 1, os.urandom)
