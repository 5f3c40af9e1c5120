"""May this HTTP request do something for a tenant?"""

from __future__ import annotations

import pytest
from starlette.requests import Request

from edge.dialects.tenants import TenantPolicy, Tenants
from edge.http.access import authorizer
from edge.http.calls import CallFailed

TENANTS = Tenants({"acme": TenantPolicy(tokens=frozenset({"t1", "two words"})), "other": TenantPolicy()})
refusals: list[CallFailed] = []
FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP")


def may(tenant: str, host: str | None = "127.0.0.1", open_to_any: bool = False, **headers: str) -> bool:
    """Whether such a request may do something for the tenant."""
    raw = [
        (name.replace("_", "-").lower().encode(), value.encode("latin-1")) for name, value in headers.items()
    ]
    client = (host, 1) if host is not None else None
    request = Request({"type": "http", "client": client, "headers": raw})
    try:
        authorizer(TENANTS, open_to_any=open_to_any)(request, tenant)
    except CallFailed as failed:
        refusals.append(failed)
        return False
    return True


def test_a_refusal_shows_no_token() -> None:
    refusals.clear()
    assert not may("acme", authorization="Bearer t2")
    assert not may("acme")
    assert not may("other", "192.0.2.1")
    assert {refused.reason for refused in refusals} == {"UNAUTHORIZED"}
    assert not any("t1" in refused.message or "t2" in refused.message for refused in refusals)


@pytest.mark.parametrize("open_to_any", [False, True])
@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1"])
def test_a_tenant_with_tokens_needs_one_from_everywhere(host: str, open_to_any: bool) -> None:
    assert not may("acme", host, open_to_any)
    assert may("acme", host, open_to_any, authorization="Bearer t1")
    assert may("acme", host, open_to_any, authorization="bearer two words")
    assert may("acme", host, open_to_any, x_api_key="t1")
    assert may("acme", host, open_to_any, authorization="Basic abc", x_api_key="t1")
    for wrong in ("", "T1", "t1,", "two", "\xff"):
        assert not may("acme", host, open_to_any, authorization=f"Bearer {wrong}")
        assert not may("acme", host, open_to_any, x_api_key=wrong)
    # What is said first counts: a wrong token is not made good.
    assert not may("acme", host, open_to_any, authorization="Bearer wrong", x_api_key="t1")


@pytest.mark.parametrize("tenant", ["other", "unknown", ""])
def test_any_other_is_open_to_this_machine_only(tenant: str) -> None:
    assert may(tenant)
    assert may(tenant, "127.8.9.1")
    assert may(tenant, "::1")
    for host in ("192.0.2.1", "::", "0.0.0.0", "localhost", "testclient", "", None):
        assert not may(tenant, host)
        # A token of another tenant is no help.
        assert not may(tenant, host, x_api_key="t1")


@pytest.mark.parametrize("header", FORWARDED)
def test_what_came_through_a_proxy_is_not_from_this_machine(header: str) -> None:
    assert not may("other", **{header.replace("-", "_"): "127.0.0.1"})
    assert not may("other", **{header.replace("-", "_"): ""})
    assert may("acme", **{header.replace("-", "_"): "192.0.2.1"}, x_api_key="t1")


@pytest.mark.parametrize("host", ["192.0.2.1", "testclient", None])
def test_an_edge_that_is_open_to_any_asks_no_one_where_there_is_no_token(host: str | None) -> None:
    assert may("other", host, open_to_any=True)
    assert may("other", host, open_to_any=True, x_forwarded_for="192.0.2.7")
