"""Edges authenticate by the link key, by a certificate, or by being local."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline_router.certificate_names import CertificateNames
from trunkline_router.rpc.link_verifier import LinkVerifier
from trunkline_runtime.call_metadata import FORWARDING_HEADERS

KEY = "the-key-of-the-links"
HERE, FAR = "ipv4:127.0.0.1:1", "ipv4:192.0.2.1:1"
ENCRYPTED = {"transport_security_type": [b"ssl"], "ssl_tls_version": [b"TLSv1.3"]}
CERTIFIED = ENCRYPTED | {"x509_common_name": [b"edge"], "x509_pem_cert": [b"-----BEGIN CERTIFICATE-----"]}


class Call:
    """The part of a call that the verifier examines."""

    def __init__(self, peer: str, *metadata: tuple[str, Any], auth: dict[str, list[bytes]] | None = None):
        self._peer, self._metadata, self._auth = peer, metadata, auth or {}

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> tuple[tuple[str, Any], ...]:
        return self._metadata

    def auth_context(self) -> dict[str, list[bytes]]:
        return self._auth


def is_edge(verifier: LinkVerifier, peer: str, *metadata: tuple[str, Any], auth: Any = None) -> bool:
    call: Any = Call(peer, *metadata, auth=auth)
    return verifier.is_edge(call)


def key(value: Any) -> tuple[str, Any]:
    return ("trunkline-link-key", value)


@pytest.mark.parametrize("peer", [HERE, FAR])
def test_a_configured_link_key_is_required_from_this_machine_too(peer: str) -> None:
    verifier = LinkVerifier(KEY, from_anywhere=True)
    assert is_edge(verifier, peer, key(KEY))
    for wrong in ("", KEY[:-1], KEY + "x", KEY.upper(), KEY.encode()):
        assert not is_edge(verifier, peer, key(wrong))
    assert not is_edge(verifier, peer)
    assert not is_edge(verifier, peer, ("authorization", f"Bearer {KEY}"))
    assert not is_edge(verifier, peer, auth=CERTIFIED)


def test_two_link_keys_are_rejected() -> None:
    assert not is_edge(LinkVerifier(KEY), HERE, key(KEY), key("another-key-than-that"))


@pytest.mark.parametrize("peer", [HERE, FAR])
def test_a_configured_link_listener_requires_certificates_from_this_machine_too(peer: str) -> None:
    verifier = LinkVerifier(by_certificate=True, from_anywhere=True)
    assert is_edge(verifier, peer, auth=CERTIFIED)
    assert not is_edge(verifier, peer, auth=ENCRYPTED)
    assert not is_edge(verifier, peer)
    assert not is_edge(verifier, peer, key(""))


def test_a_key_or_a_certificate_suffices_if_both_are_configured() -> None:
    verifier = LinkVerifier(KEY, by_certificate=True)
    assert is_edge(verifier, FAR, auth=CERTIFIED)
    assert is_edge(verifier, FAR, key(KEY), auth=ENCRYPTED)
    assert not is_edge(verifier, FAR, key("no"), auth=ENCRYPTED)


def test_without_credentials_configured_local_callers_are_edges() -> None:
    assert is_edge(LinkVerifier(), HERE)
    assert is_edge(LinkVerifier(), "ipv6:%5B::1%5D:1")
    for peer in (FAR, "unix:", ""):
        assert not is_edge(LinkVerifier(), peer)


def test_insecure_links_admit_edges_from_anywhere() -> None:
    assert is_edge(LinkVerifier(from_anywhere=True), FAR)


@pytest.mark.parametrize("header", [*sorted(FORWARDING_HEADERS), "x-forwarded-for", "x-real-ip", "cf-ray"])
def test_a_caller_behind_a_proxy_needs_credentials(header: str) -> None:
    by_proxy = (header, "127.0.0.1")
    assert not is_edge(LinkVerifier(), HERE, by_proxy)
    assert not is_edge(LinkVerifier(from_anywhere=True), FAR, by_proxy)
    assert is_edge(LinkVerifier(KEY), FAR, by_proxy, key(KEY))


def test_names_limit_certificates_and_bind_ids_but_not_those_of_the_link_key() -> None:
    verifier = LinkVerifier(KEY, by_certificate=True, names=CertificateNames(["*.edges", "spiffe://a/edge"]))
    named = CERTIFIED | {"peer_dns": [b"b.edges", b"other"], "peer_uri": [b"spiffe://a/edge"]}
    call: Any = Call(FAR, auth=named)
    assert verifier.is_edge(call)
    assert verifier.edge_names(call) == ("b.edges", "spiffe://a/edge")
    by_key: Any = Call(FAR, key(KEY), auth=named)
    assert verifier.is_edge(by_key)
    assert verifier.edge_names(by_key) == ()
    # A common name, and names of other kinds, are none.
    for foreign in (CERTIFIED | {"x509_common_name": [b"b.edges"]}, CERTIFIED | {"peer_email": [b"b.edges"]}):
        assert not is_edge(verifier, FAR, auth=foreign)
        assert not is_edge(verifier, HERE, auth=foreign)
    assert not is_edge(verifier, FAR, auth=ENCRYPTED | {"peer_dns": [b"b.edges"]})
