"""A router with open links or half a setting does not start."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline_router import listeners
from trunkline_router.settings import RouterSettings
from trunkline_runtime.process import StartError

from tests.router.rpc.test_link_verifier import Call

KEY = "the-key-of-the-links"
TLS = {"tls_cert": "router.pem", "tls_key": "router.key"}
REMEDIES = (
    "TRUNKLINE_LINK_KEY",
    "TRUNKLINE_LINK_LISTEN",
    "TRUNKLINE_TLS_CLIENT_CA",
    "TRUNKLINE_INSECURE_LINKS=true",
)


def check(**settings: Any) -> None:
    listeners.check(RouterSettings(**settings))


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1"])
def test_a_router_on_loopback_needs_no_credentials_for_links(listen: str) -> None:
    check(router_listen=listen)


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "router.example:1", ":1"])
def test_a_router_elsewhere_does_not_start_and_names_the_settings_to_change(listen: str) -> None:
    with pytest.raises(StartError) as refused:
        check(router_listen=listen)
    text = str(refused.value)
    assert listen in text
    for remedy in REMEDIES:
        assert remedy in text
    check(router_listen=listen, link_key=KEY)
    check(router_listen=listen, insecure_links=True)
    check(router_listen=listen, link_listen="0.0.0.0:2", tls_client_ca="ca.pem", **TLS)


@pytest.mark.parametrize(
    "router_listen", ["127.0.0.1:1", "localhost:1", "[::1]:1", "0.0.0.0:1", "[::]:1", ":1"]
)
@pytest.mark.parametrize("link_listen", ["", "127.0.0.1:2", "0.0.0.0:2"])
@pytest.mark.parametrize("key", ["", KEY])
@pytest.mark.parametrize("insecure", [False, True])
def test_a_link_without_credentials_needs_a_router_that_only_this_machine_reaches(
    router_listen: str, link_listen: str, key: str, insecure: bool
) -> None:
    more = {"tls_client_ca": "ca.pem", **TLS} if link_listen else {}
    settings = RouterSettings(
        router_listen=router_listen,
        link_listen=link_listen,
        link_key=key,
        insecure_links=insecure,
        **more,
    )
    from_this_machine: Any = Call("ipv4:127.0.0.1:1")
    is_local = router_listen in ("127.0.0.1:1", "localhost:1", "[::1]:1")
    expected = not key and not link_listen and (is_local or insecure)
    assert listeners.link_verifier(settings).is_edge(from_this_machine) == expected


def test_tls_alone_does_not_authenticate_edges() -> None:
    with pytest.raises(StartError, match="TRUNKLINE_LINK_KEY"):
        check(router_listen="0.0.0.0:1", **TLS)


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"tls_cert": "a"}, "TRUNKLINE_TLS_KEY"),
        ({"tls_key": "a"}, "TRUNKLINE_TLS_CERT"),
        ({"link_listen": "127.0.0.1:2", **TLS}, "TRUNKLINE_TLS_CLIENT_CA"),
        ({"tls_client_ca": "a", **TLS}, "TRUNKLINE_LINK_LISTEN"),
        ({"link_listen": "127.0.0.1:2", "tls_client_ca": "a"}, "TRUNKLINE_TLS_CERT"),
    ],
)
def test_a_setting_without_its_counterpart_is_refused(given: dict[str, str], missing: str) -> None:
    with pytest.raises(StartError, match=f"requires {missing}"):
        check(**given)
