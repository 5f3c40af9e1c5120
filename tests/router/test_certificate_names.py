"""Which names in a certificate are an edge's, and which edge ids they allow."""

from __future__ import annotations

import pytest
from trunkline_router.certificate_names import CertificateNames, allows_edge_id


@pytest.mark.parametrize(
    ("pattern", "dns", "uris", "expected"),
    [
        ("edge-1.internal", ["edge-1.internal"], [], ["edge-1.internal"]),
        ("Edge-1.internal", ["EDGE-1.Internal."], [], ["edge-1.internal"]),
        ("edge-1.internal", ["edge-10.internal", "edge-1.internal.evil.example", "internal"], [], []),
        ("*.edges.internal", ["a.edges.internal", "b.internal"], [], ["a.edges.internal"]),
        ("*.edges.internal", ["edges.internal", "a.b.edges.internal", ".edges.internal"], [], []),
        ("*.edges.internal", ["*.edges.internal"], [], []),
        ("edge.*.internal", ["edge.eu.internal"], [], ["edge.eu.internal"]),
        ("spiffe://prod/edge/a", [], ["spiffe://prod/edge/a"], ["spiffe://prod/edge/a"]),
        ("spiffe://prod/edge/*", [], ["spiffe://prod/edge/a", "spiffe://prod/worker/a"], ["spiffe://prod/edge/a"]),
        ("spiffe://prod/edge/*", [], ["spiffe://prod/edge/", "spiffe://prod/edge/a/b"], []),
        ("spiffe://prod/edge/a", [], ["spiffe://Prod/edge/a", "https://prod/edge/a"], []),
        ("edge", [], ["edge"], []),
        ("spiffe://prod/edge", ["spiffe://prod/edge"], [], []),
        ("spiffe://*/edge", [], ["spiffe://prod#/edge", "spiffe://*/edge", "spiffe://a b/edge"], []),
    ],
)  # fmt: skip
def test_names_match_exactly_or_with_one_star(
    pattern: str, dns: list[str], uris: list[str], expected: list[str]
) -> None:
    assert CertificateNames([pattern]).matching(dns, uris) == tuple(expected)
    assert CertificateNames(["other.example", pattern]).matching(dns, uris) == tuple(expected)


@pytest.mark.parametrize(
    "pattern", ["", "*.*.internal", "ed*ge.internal", "edge internal", "a..b", "spiffe://a/*/*", "edge#1", "://x"]
)  # fmt: skip
def test_an_invalid_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="no DNS name or URI"):
        CertificateNames([pattern])


def test_an_edge_id_is_a_name_of_the_certificate_or_begins_with_it() -> None:
    names = ("edge-1.internal", "spiffe://prod/edge/a")
    for own in ("edge-1.internal", "Edge-1.internal", "edge-1.internal#7f3a", "spiffe://prod/edge/a#1#2"):
        assert allows_edge_id(names, own)
    for foreign in ("edge-10.internal", "edge-1.internal-1", "edge-1", "", "#", "x#edge-1.internal", "spiffe://prod/edge/A"):  # fmt: skip  # noqa: E501
        assert not allows_edge_id(names, foreign)
