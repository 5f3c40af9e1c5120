"""The decision about callers, over everything that it depends on."""

from __future__ import annotations

from itertools import product

import pytest
from trunkline.v1.access_pb2 import SCOPE_ADMIN, SCOPE_BROADCAST, SCOPE_OPERATOR
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import OPENNESS_ANYBODY, OPENNESS_LOOPBACK, OPENNESS_NOBODY, OPENNESS_UNSPECIFIED
from trunkline_edge.auth.caller_policy import CONNECT, check_caller
from trunkline_edge.auth.cors import cors_headers, preflight_headers
from trunkline_edge.auth.request_source import RequestSource
from trunkline_runtime.call_metadata import FORWARDING_HEADERS

from tests.support.declared_tenants import policy

HERE, FAR = "127.0.0.1", "192.0.2.1"
LOCAL_PAGE, DECLARED_PAGE, FOREIGN_PAGE = "http://localhost:3000", "https://a.example", "https://evil.example"
LOCAL_HOSTS = (
    "localhost",
    "LOCALHOST:8080",
    "localhost.:80",
    "app.localhost:8080",
    "127.0.0.1",
    "127.0.0.1:8080",
    "127.9.9.9:1",
    "[::1]",
    "[::1]:8080",
    "[0:0:0:0:0:0:0:1]:8080",
    "[::ffff:127.0.0.1]:80",
)
OTHER_HOSTS = (
    "",
    "evil.example",
    "evil.example:8080",
    "localhost.evil.example",
    "notlocalhost",
    "127.0.0.1.evil.example",
    "127.0.0.1.nip.io:8080",
    "localhost@evil.example",
    "localhost:80@evil.example",
    "localhost:x",
    "localhost,evil.example",
    "evil.example/localhost",
    "local host",
    "localhost%00",
    "0.0.0.0:8080",
    "[::]:8080",
    "192.0.2.1:8080",
    "10.0.0.1",
    "2130706433",
    "127.1",
    "[::1",
    "::1",
    "lоcalhost",
)


def source_with(remote_ip: str = HERE, version: str = "1.1", **headers: str) -> RequestSource:
    named = {"host": "localhost:8080"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return RequestSource.read(remote_ip, named.items(), version)


def code(
    refusing: RequestSource, scope: int = SCOPE_BROADCAST, proof: bool = False, **settings: object
) -> str:
    """The code of the refusal; empty if the caller may proceed."""
    try:
        check_caller(policy("t", **settings), refusing, scope, has_proof=proof)  # type: ignore[arg-type]
    except Refused as refused:
        return refused.entry.code
    return ""


@pytest.mark.parametrize("host", LOCAL_HOSTS)
def test_a_host_that_can_only_mean_this_machine_is_local(host: str) -> None:
    assert source_with(host=host).is_local
    assert not source_with(FAR, host=host).is_local


@pytest.mark.parametrize("host", OTHER_HOSTS)
def test_any_other_host_may_be_rebound_to_this_machine(host: str) -> None:
    found = source_with(host=host)
    assert not found.is_local
    assert found.is_unlike_its_address
    assert code(found, open_to=OPENNESS_LOOPBACK) == "UNAUTHORIZED"


def test_a_request_names_one_host() -> None:
    for hosts in ([], ["localhost", "localhost"], ["localhost", "evil.example"]):
        assert not RequestSource.read(HERE, [("host", host) for host in hosts]).is_local


@pytest.mark.parametrize(
    "header",
    [
        *sorted(FORWARDING_HEADERS),
        "x-forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-anything",
        "x-real-ip",
        "x-envoy-external-address",
        "cf-connecting-ip",
        "cf-ray",
    ],
)
@pytest.mark.parametrize("value", ["127.0.0.1", ""])
def test_a_header_of_a_proxy_makes_a_request_remote(header: str, value: str) -> None:
    found = source_with(**{header: value})
    assert not found.is_local
    assert found.is_unlike_its_address
    assert code(found, CONNECT, open_to=OPENNESS_LOOPBACK) == "UNAUTHORIZED"


def test_headers_of_clients_are_no_headers_of_proxies() -> None:
    usual = "accept user-agent x-requested-with x-request-id x-api-key x-apikey x-uuid x-platform cookie te"
    assert source_with(**dict.fromkeys(usual.split(), "x")).is_local


def test_http_1_0_is_spoken_by_proxies() -> None:
    assert not source_with(version="1.0").is_local


@pytest.mark.parametrize(
    ("origin", "is_foreign"),
    [
        (LOCAL_PAGE, False),
        ("http://127.0.0.1:8080", False),
        ("https://[::1]", False),
        ("http://app.localhost", False),
        (FOREIGN_PAGE, True),
        ("null", True),
        ("http://localhost.evil.example", True),
        ("http://localhost@evil.example", True),
        ("http://evil.example#localhost", True),
        ("chrome-extension://localhost", True),
        ("file://localhost", True),
        ("localhost", True),
        ("http://", True),
    ],
)
def test_pages_of_this_machine_are_told_apart_from_others(origin: str, is_foreign: bool) -> None:
    for site in ("cross-site", "same-site", "same-origin", "none"):
        assert source_with(origin=origin, sec_fetch_site=site).is_foreign_page is is_foreign
        assert source_with(sec_fetch_site=site).is_foreign_page is (site == "cross-site")
    twice = [("host", "localhost"), ("origin", LOCAL_PAGE), ("origin", origin)]
    assert RequestSource.read(HERE, twice).is_foreign_page


def expected(
    openness: int,
    remote_ip: str,
    forwarded: bool,
    host: str,
    origin: str,
    declared: bool,
    proof: bool,
    scope: int,
) -> str:
    """The rules, each stated once."""
    is_local = remote_ip == HERE and not forwarded and host == "localhost"
    if scope == SCOPE_OPERATOR and proof:
        return ""
    if origin:
        if declared and origin != DECLARED_PAGE:
            # Without Origin, only a proof tells a page that may be declared from others.
            return "" if origin == "cross-site" and proof else "ORIGIN_FORBIDDEN"
        if not declared and not proof and openness == OPENNESS_LOOPBACK and origin != LOCAL_PAGE:
            return "ORIGIN_FORBIDDEN"
    if proof:
        return ""
    if scope in (SCOPE_ADMIN, SCOPE_OPERATOR):
        return "UNAUTHORIZED"
    is_open = openness == OPENNESS_ANYBODY or (openness == OPENNESS_LOOPBACK and is_local)
    return "" if is_open else "UNAUTHORIZED"


def test_each_caller_is_admitted_by_the_rules() -> None:
    opennesses = (OPENNESS_UNSPECIFIED, OPENNESS_NOBODY, OPENNESS_LOOPBACK, OPENNESS_ANYBODY)
    hosts = ("localhost", "evil.example")
    origins = ("", LOCAL_PAGE, DECLARED_PAGE, FOREIGN_PAGE, "null", "cross-site")
    both = (False, True)
    scopes = (CONNECT, SCOPE_BROADCAST, SCOPE_ADMIN, SCOPE_OPERATOR)
    cases = list(product(opennesses, (HERE, FAR), both, hosts, origins, both, both, scopes))
    for openness, remote_ip, forwarded, host, origin, declared, proof, scope in cases:
        headers = {"host": host} | ({"via": "1.1 proxy"} if forwarded else {})
        if origin:
            headers |= {"sec_fetch_site": origin} if origin == "cross-site" else {"origin": origin}
        found = code(
            source_with(remote_ip, **headers),
            scope,
            proof,
            open_to=openness,
            origins=[DECLARED_PAGE] if declared else [],
        )
        case = (openness, remote_ip, forwarded, host, origin, declared, proof, scope)
        assert found == expected(*case), case
    assert len(cases) == 4 * 2 * 2 * 2 * 6 * 2 * 2 * 4


def test_a_refusal_names_what_is_wrong() -> None:
    with pytest.raises(Refused, match="addressed as localhost and not through a proxy"):
        check_caller(policy("t"), source_with(host="evil.example"), SCOPE_BROADCAST, has_proof=False)
    with pytest.raises(Refused, match=r"Origin https://evil\.example"):
        check_caller(policy("t"), source_with(origin=FOREIGN_PAGE), CONNECT, has_proof=False)
    with pytest.raises(Refused, match="of another site"):
        check_caller(policy("t"), source_with(sec_fetch_site="cross-site"), CONNECT, has_proof=False)


# CORS

ALLOWED = "GET, HEAD, OPTIONS"


@pytest.mark.parametrize(
    ("origins", "credentials", "origin", "allowed", "with_credentials"),
    [
        ([], False, FOREIGN_PAGE, "*", False),
        # Never both.
        ([], True, FOREIGN_PAGE, "*", False),
        ([DECLARED_PAGE], False, DECLARED_PAGE, DECLARED_PAGE, False),
        ([DECLARED_PAGE], True, DECLARED_PAGE, DECLARED_PAGE, True),
        ([DECLARED_PAGE], True, FOREIGN_PAGE, None, False),
        ([DECLARED_PAGE], True, "null", None, False),
        ([DECLARED_PAGE], True, "", None, False),
        ([DECLARED_PAGE], True, LOCAL_PAGE, None, False),
    ],
)
def test_the_pages_that_may_read_are_those_that_may_connect(
    origins: list[str], credentials: bool, origin: str, allowed: str | None, with_credentials: bool
) -> None:
    asked = policy("t", origins=origins, allow_credentials=credentials)
    found = source_with(origin=origin) if origin else source_with()
    headers = cors_headers(asked, found)
    assert headers.get("access-control-allow-origin") == allowed
    assert headers.get("access-control-allow-credentials") == ("true" if with_credentials else None)
    assert headers.get("vary") == ("Origin" if origins else None)
    preflight = preflight_headers(asked, found, ALLOWED)
    assert preflight["allow"] == ALLOWED
    assert preflight.get("access-control-allow-origin") == allowed
    assert preflight.get("access-control-allow-credentials") == headers.get(
        "access-control-allow-credentials"
    )
    assert preflight.get("access-control-allow-methods") == (ALLOWED if allowed else None)
    if allowed:
        may_set = preflight["access-control-allow-headers"].split(", ")
        assert {"authorization", "content-type", "x-api-key", "last-event-id", "traceparent"} <= set(may_set)
        assert int(preflight["access-control-max-age"]) > 0
        assert "retry-after" in headers["access-control-expose-headers"]


def test_no_page_may_read_where_there_is_no_tenant() -> None:
    assert cors_headers(None, source_with(origin=FOREIGN_PAGE)) == {}
    assert preflight_headers(None, source_with(origin=FOREIGN_PAGE), ALLOWED) == {"allow": ALLOWED}
