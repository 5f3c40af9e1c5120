"""Tenant, agent and platform of maim_message's Router, from its headers and URL."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import TenantPolicy
from trunkline.v1.tenant_pb2 import ClientAuth, TenantSettings
from trunkline_edge.dialects.dialect import ConnectPlan, ConnectRequest, read_query
from trunkline_edge.dialects.maim import api
from trunkline_edge.dialects.tenant_policies import TenantPolicies, digest_of

API = api.make(lambda: datetime(2026, 1, 2, tzinfo=UTC))
AUTH = ClientAuth(token_digests=[digest_of("s3cret"), digest_of("with:a colon")])
TENANTS = TenantPolicies(
    [
        TenantPolicy(tenant="acme", settings=TenantSettings(default_agent="helper", client_auth=AUTH)),
        TenantPolicy(tenant="bare", settings=TenantSettings()),
    ]
)


def plan(query: str = "", **headers: str) -> ConnectPlan:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return API.connect(ConnectRequest({}, read_query(query), named, None, TENANTS))


def place(made: ConnectPlan) -> tuple[str, str, str, str]:
    address = made.opened.address
    return address.tenant, address.agent, address.platform, made.token


@pytest.mark.parametrize(
    ("query", "authorization", "expected"),
    [
        ("", "s3cret", ("acme", "helper", "qq", "s3cret")),
        ("", "Bearer s3cret", ("acme", "helper", "qq", "s3cret")),
        ("", "with:a colon", ("acme", "helper", "qq", "with:a colon")),
        ("token=s3cret", "", ("acme", "helper", "qq", "s3cret")),
        ("", "demo:echo", ("demo", "echo", "qq", "")),
        ("", "acme:other:s3cret", ("acme", "other", "qq", "s3cret")),
        ("", "acme:other:a.b.c", ("acme", "other", "qq", "a.b.c")),
        ("api_key=demo:echo", "", ("demo", "echo", "qq", "")),
        ("api_key=demo:echo", "theirs", ("demo", "echo", "qq", "theirs")),
        ("api_key=acme", "s3cret", ("acme", "helper", "qq", "s3cret")),
        ("api_key=acme:other:s3cret", "", ("acme", "other", "qq", "s3cret")),
    ],
)
def test_the_token_or_the_url_names_tenant_and_agent(
    query: str, authorization: str, expected: tuple[str, str, str, str]
) -> None:
    headers = {"authorization": authorization} if authorization else {}
    made = plan(query, platform="qq", **headers)
    assert place(made) == expected
    assert made.opened.protocol == "maim.router"
    assert made.opened.user == f"qq@{expected[1]}"
    assert made.opened.supersedes
    assert made.may_be_foreign


@pytest.mark.parametrize(
    ("query", "authorization", "code"),
    [
        ("", "", "UNAUTHORIZED"),
        ("", "wrong", "UNAUTHORIZED"),
        ("", "acme:", "UNAUTHORIZED"),
        ("", ":echo", "UNAUTHORIZED"),
        ("api_key=:echo", "", "UNAUTHORIZED"),
        ("api_key=bare", "", "INVALID_ADDRESS"),
    ],
)
def test_without_a_tenant_or_an_agent_the_client_is_refused(
    query: str, authorization: str, code: str
) -> None:
    with pytest.raises(Refused) as refused:
        plan(query, platform="qq", authorization=authorization)
    assert refused.value.entry.code == code


def test_the_platform_may_be_any_text() -> None:
    assert place(plan("api_key=demo:echo", platform="微信".encode().decode("latin-1")))[2] == "微信"


@pytest.mark.parametrize("header", ["x_apikey", "x_platform"])
def test_headers_of_the_api_server_select_its_protocol(header: str) -> None:
    made = plan("api_key=demo:echo", platform="qq", **{header: "demo:echo"})
    assert made.opened.protocol == "maim.api"
    assert not made.opened.supersedes
