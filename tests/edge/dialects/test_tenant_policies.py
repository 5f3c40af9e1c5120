"""The index of tenant policies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1.tenant_pb2 import OPENNESS_ANYBODY, OPENNESS_LOOPBACK, OPENNESS_NOBODY
from trunkline_edge.dialects.tenant_policies import TenantPolicies

from tests.support.declared_tenants import policy

SECRET = "s3cr3t-of-acme"


def test_policies_supply_tenant_and_agent_of_clients_that_name_none() -> None:
    tenants = TenantPolicies(
        [
            policy("acme", default_agent="helper", pipelines=["p1", "p2"], tokens=[SECRET, "another one"]),
            policy("open", pipelines=["p3"]),
        ]
    )
    owners = [tenants.owner_of("langbot", pipeline) for pipeline in ("p1", "p2", "p3", "p4", "")]
    assert owners == ["acme", "acme", "open", "", ""]
    assert [tenants.default_agent(name) for name in ("acme", "open", "unknown")] == ["helper", "", ""]
    owners = [
        tenants.tenant_of_token(token) for token in (SECRET, "another one", SECRET.upper(), "\udcff", "")
    ]
    assert owners == ["acme", "acme", "", "", ""]
    assert [tenants.can_verify_tokens(name) for name in ("acme", "open", "unknown")] == [True, False, False]


@pytest.mark.parametrize(
    ("open_to", "from_here", "from_elsewhere"),
    [
        (0, False, False),
        (OPENNESS_NOBODY, False, False),
        (OPENNESS_LOOPBACK, True, False),
        (OPENNESS_ANYBODY, True, True),
    ],
)
def test_a_tenant_is_open_to_those_whom_it_says(open_to: int, from_here: bool, from_elsewhere: bool) -> None:
    tenants = TenantPolicies([policy("t", open_to=open_to)])
    assert (tenants.is_open("t", True), tenants.is_open("t", False)) == (from_here, from_elsewhere)
    assert not tenants.is_open("unknown", True)


@given(st.text(min_size=1), st.frozensets(st.text(min_size=1), min_size=1))
def test_a_token_belongs_to_the_tenant_that_shares_it(token: str, tokens: frozenset[str]) -> None:
    tenants = TenantPolicies([policy("acme", tokens=tokens), policy("other")])
    assert (tenants.tenant_of_token(token) == "acme") == (token in tokens)


def test_tenants_are_known_after_the_first_sync() -> None:
    tenants = TenantPolicies()
    tenants.begin_sync()
    tenants.put(policy("one"))
    assert not tenants.are_known
    assert tenants.end_sync() == []
    assert tenants.are_known
    # The next sync sends fewer tenants; until it ends, all stay.
    tenants.begin_sync()
    tenants.put(policy("two"))
    assert (tenants.policy("one") is not None, tenants.are_known) == (True, True)
    assert tenants.end_sync() == ["one"]
    assert (tenants.policy("one"), tenants.policy("two") is not None) == (None, True)


def test_released_names_and_secrets_may_pass_to_another_tenant() -> None:
    tenants = TenantPolicies([policy("one", pipelines=["p"], tokens=[SECRET])])
    tenants.put(policy("two", pipelines=["p"], tokens=[SECRET]))
    tenants.put(policy("one"))
    assert (tenants.owner_of("langbot", "p"), tenants.tenant_of_token(SECRET)) == ("two", "two")
    tenants.remove("two")
    tenants.remove("two")
    assert (
        tenants.owner_of("langbot", "p"),
        tenants.tenant_of_token(SECRET),
        tenants.are_known_by("langbot.workspace"),
    ) == ("", "", False)


def test_agents_outlive_a_router_until_their_workers_attach_again() -> None:
    known = policy("acme")
    known.agents.extend(["declared", "attached"])
    tenants = TenantPolicies([known])
    again = policy("acme")
    again.agents.append("declared")
    tenants.begin_sync()
    tenants.put(again)
    tenants.end_sync()
    found = tenants.policy("acme")
    assert found is not None
    assert set(found.agents) == {"declared", "attached"}
    changed = policy("acme")
    changed.agents.append("other")
    tenants.put(changed)
    found = tenants.policy("acme")
    assert found is not None
    assert list(found.agents) == ["other"]
