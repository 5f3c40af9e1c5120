"""Metadata of HTTP callers, and refusals before a body is read."""

from __future__ import annotations

import pytest
from starlette.requests import Request
from trunkline.v1.access_pb2 import (
    SCOPE_ADMIN,
    SCOPE_BROADCAST,
    SCOPE_HISTORY,
    SCOPE_OPERATOR,
    SCOPE_PRESENCE,
)
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import OPENNESS_ANYBODY, OPENNESS_LOOPBACK
from trunkline_edge.dialects.tenant_policies import TenantPolicies
from trunkline_edge.http.caller_metadata import CallerMetadata
from trunkline_edge.http.sources import source_of

from tests.support.declared_tenants import policy

TENANTS = TenantPolicies(
    [
        policy("closed", tokens=["t1", "two words", "é"]),
        policy("here", open_to=OPENNESS_LOOPBACK),
        policy("all", open_to=OPENNESS_ANYBODY, tokens=["of all"]),
        policy("你好", tokens=["t2"]),
    ]
)
FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via", "cf-connecting-ip", "x_forwarded_proto")
FAR = "192.0.2.1"


def request(host: str | None = "127.0.0.1", **headers: str) -> Request:
    headers = {"host": "localhost:8080"} | headers
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    client = (host, 1) if host is not None else None
    return Request({"type": "http", "client": client, "headers": raw})


def metadata_for(asked: Request, tenant: str) -> dict[str, str]:
    found = CallerMetadata(TENANTS).metadata(asked, tenant, SCOPE_BROADCAST)
    assert len(dict(found)) == len(found)
    assert all(value.isascii() and value.isprintable() for _, value in found)
    return dict(found)


def refusal(
    asked: Request, tenant: str, scope: int = SCOPE_BROADCAST, tenants: TenantPolicies = TENANTS
) -> str:
    """The code with which a request is refused before its body is read; empty if it is not."""
    try:
        CallerMetadata(tenants).admit(asked, tenant, scope)
    except Refused as refused:
        return refused.entry.code
    return ""


# Metadata


def test_any_key_is_passed_on_from_either_header() -> None:
    for headers in (
        {"authorization": "Bearer tl_1_x"},
        {"authorization": "bearer  tl_1_x "},
        {"x_api_key": "tl_1_x"},
        # Other schemes are ignored.
        {"authorization": "Basic abc", "x_api_key": "tl_1_x"},
    ):
        assert metadata_for(request(**headers), "closed")["authorization"] == "Bearer tl_1_x"
    # The Authorization header wins, even with a wrong key.
    both = request(authorization="Bearer wrong", x_api_key="t1")
    assert metadata_for(both, "closed")["authorization"] == "Bearer wrong"
    assert metadata_for(request(authorization="Bearer"), "closed")["authorization"] == "Bearer "
    assert "authorization" not in metadata_for(request(authorization="Basic abc"), "all")
    assert "authorization" not in metadata_for(request(), "all")


def test_a_secret_that_a_tenants_clients_share_is_spoken_for_by_the_edge() -> None:
    for headers in ({"authorization": "Bearer t1"}, {"x_api_key": "t1"}, {"x_api_key": "two words"}):
        asked = metadata_for(request(**headers), "closed")
        assert (asked["trunkline-acting-for"], asked["trunkline-by-secret"]) == ("closed", "1")
        assert "authorization" not in asked
    assert metadata_for(request(x_api_key="t2"), "你好")["trunkline-acting-for"] == "%E4%BD%A0%E5%A5%BD"
    # Neither another tenant's nor the operator's.
    for tenant in ("here", "all", "nobody", ""):
        asked = metadata_for(request(x_api_key="t1"), tenant)
        assert asked["authorization"] == "Bearer t1"
        assert "trunkline-acting-for" not in asked


def test_a_shared_secret_has_the_scopes_of_clients() -> None:
    shown = request(x_api_key="t1")
    for scope in range(SCOPE_BROADCAST, SCOPE_ADMIN + 1):
        if scope in (SCOPE_BROADCAST, SCOPE_HISTORY, SCOPE_PRESENCE):
            CallerMetadata(TENANTS).metadata(shown, "closed", scope)
        else:
            with pytest.raises(Refused) as failed:
                CallerMetadata(TENANTS).metadata(shown, "closed", scope)
            assert failed.value.entry.code == "FORBIDDEN"


def test_the_router_receives_the_address_of_the_caller() -> None:
    assert metadata_for(request(FAR), "all") == {"trunkline-remote-ip": FAR}
    assert metadata_for(request("::1"), "here") == {"trunkline-remote-ip": "::1"}
    # Never absent, or the caller would pass for the edge itself.
    assert metadata_for(request(None), "all") == {"trunkline-remote-ip": "unknown"}
    for name in FORWARDED:
        asked = metadata_for(request(**{name.replace("-", "_"): "127.0.0.1"}), "all")
        assert asked == {"trunkline-remote-ip": "127.0.0.1", "trunkline-forwarded": "1"}


def test_nobody_speaks_for_the_edge() -> None:
    said = request(
        FAR, trunkline_remote_ip="127.0.0.1", trunkline_acting_for="closed", trunkline_link_key="k"
    )
    assert metadata_for(said, "all") == {"trunkline-remote-ip": FAR}


@pytest.mark.parametrize("key", ["é", "a\x01b", "x" * 5000])
def test_an_invalid_key_is_refused_and_not_quoted(key: str) -> None:
    for headers in ({"authorization": f"Bearer {key}"}, {"x_api_key": key}):
        with pytest.raises(Refused) as failed:
            metadata_for(request(**headers), "here")
        assert failed.value.entry.code == "UNAUTHORIZED"
        assert key not in str(failed.value)


def test_traces_go_on() -> None:
    assert metadata_for(request(traceparent="00-1-2-01", tracestate="a=b"), "here") == {
        "traceparent": "00-1-2-01",
        "tracestate": "a=b",
        "trunkline-remote-ip": "127.0.0.1",
    }
    with pytest.raises(Refused) as failed:
        metadata_for(request(traceparent="é"), "here")
    assert failed.value.entry.code == "INVALID_ARGUMENT"


# Refusals before a body is read


@pytest.mark.parametrize("scope", [SCOPE_BROADCAST, SCOPE_ADMIN])
def test_callers_without_credentials_are_refused_if_they_need_some(scope: int) -> None:
    assert refusal(request(), "closed", scope) == "UNAUTHORIZED"
    assert refusal(request(authorization="Basic abc"), "closed", scope) == "UNAUTHORIZED"
    assert refusal(request(), "here", scope) == ("UNAUTHORIZED" if scope == SCOPE_ADMIN else "")
    assert refusal(request(FAR), "here", scope) == "UNAUTHORIZED"
    assert refusal(request(None), "here", scope) == "UNAUTHORIZED"
    assert refusal(request(FAR), "all", scope) == ("UNAUTHORIZED" if scope == SCOPE_ADMIN else "")
    for name in FORWARDED:
        assert refusal(request(**{name.replace("-", "_"): ""}), "here", scope) == "UNAUTHORIZED"


def test_who_shows_something_is_the_routers_to_judge() -> None:
    for scope in (SCOPE_BROADCAST, SCOPE_OPERATOR):
        for headers in ({"authorization": "Bearer x"}, {"x_api_key": "x"}):
            assert refusal(request(FAR, **headers), "closed", scope) == ""


def test_only_the_operator_declares_tenants() -> None:
    assert refusal(request(), "", SCOPE_OPERATOR) == "UNAUTHORIZED"
    assert refusal(request(), "here", SCOPE_OPERATOR) == "UNAUTHORIZED"


def test_a_tenant_that_there_is_not_is_not_waited_for_once_all_are_known() -> None:
    assert refusal(request(), "nobody") == "UNKNOWN_TENANT"
    assert refusal(request(), "nobody", tenants=TenantPolicies()) == ""


def test_a_forwarded_request_is_not_local() -> None:
    for host in ("127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"):
        assert source_of(request(host)).is_local
    for host in (FAR, "::", "0.0.0.0", "localhost", "testclient", "", None):
        assert not source_of(request(host)).is_local
    for name in FORWARDED:
        assert not source_of(request(**{name.replace("-", "_"): "127.0.0.1"})).is_local
