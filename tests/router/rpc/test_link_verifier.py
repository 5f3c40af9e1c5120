"""An edge proves that it is one: by the link key, by a certificate, or by being there."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline_router.rpc.link_verifier import LinkVerifier
from trunkline_runtime.call_metadata import PROXIED

KEY = "the-key-of-the-links"
HERE, FAR = "ipv4:127.0.0.1:1", "ipv4:192.0.2.1:1"
ENCRYPTED = {"transport_security_type": [b"ssl"], "ssl_tls_version": [b"TLSv1.3"]}
CERTIFIED = ENCRYPTED | {"x509_common_name": [b"edge"], "x509_pem_cert": [b"-----BEGIN CERTIFICATE-----"]}


class Call:
    """What the proof looks at of a call."""

    def __init__(self, peer: str, *metadata: tuple[str, Any], auth: dict[str, list[bytes]] | None = None):
        self._peer, self._metadata, self._auth = peer, metadata, auth or {}

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> tuple[tuple[str, Any], ...]:
        return self._metadata

    def auth_context(self) -> dict[str, list[bytes]]:
        return self._auth


def holds(proof: LinkVerifier, peer: str, *metadata: tuple[str, Any], auth: Any = None) -> bool:
    call: Any = Call(peer, *metadata, auth=auth)
    return proof.is_edge(call)


def key(value: Any) -> tuple[str, Any]:
    return ("trunkline-link-key", value)


@pytest.mark.parametrize("peer", [HERE, FAR])
def test_where_there_is_a_link_key_it_must_be_shown_also_from_this_machine(peer: str) -> None:
    proof = LinkVerifier(KEY, from_anywhere=True)
    assert holds(proof, peer, key(KEY))
    for shown in ("", KEY[:-1], KEY + "x", KEY.upper(), KEY.encode()):
        assert not holds(proof, peer, key(shown))
    assert not holds(proof, peer)
    assert not holds(proof, peer, ("authorization", f"Bearer {KEY}"))
    assert not holds(proof, peer, auth=CERTIFIED)


def test_of_two_keys_none_counts() -> None:
    assert not holds(LinkVerifier(KEY), HERE, key(KEY), key("another-key-than-that"))


@pytest.mark.parametrize("peer", [HERE, FAR])
def test_where_there_is_a_port_for_certificates_one_must_be_shown_also_from_this_machine(peer: str) -> None:
    proof = LinkVerifier(by_certificate=True, from_anywhere=True)
    assert holds(proof, peer, auth=CERTIFIED)
    assert not holds(proof, peer, auth=ENCRYPTED)
    assert not holds(proof, peer)
    assert not holds(proof, peer, key(""))


def test_where_there_are_both_either_will_do() -> None:
    proof = LinkVerifier(KEY, by_certificate=True)
    assert holds(proof, FAR, auth=CERTIFIED)
    assert holds(proof, FAR, key(KEY), auth=ENCRYPTED)
    assert not holds(proof, FAR, key("no"), auth=ENCRYPTED)


def test_where_there_is_neither_whoever_is_on_this_machine_is_an_edge() -> None:
    assert holds(LinkVerifier(), HERE)
    assert holds(LinkVerifier(), "ipv6:%5B::1%5D:1")
    for peer in (FAR, "unix:", ""):
        assert not holds(LinkVerifier(), peer)


def test_where_that_was_said_whoever_is_anywhere_is_an_edge() -> None:
    assert holds(LinkVerifier(from_anywhere=True), FAR)


@pytest.mark.parametrize("header", PROXIED)
def test_who_came_by_a_proxy_is_there_only_by_showing_something(header: str) -> None:
    by_proxy = (header, "127.0.0.1")
    assert not holds(LinkVerifier(), HERE, by_proxy)
    assert not holds(LinkVerifier(from_anywhere=True), FAR, by_proxy)
    assert holds(LinkVerifier(KEY), FAR, by_proxy, key(KEY))
