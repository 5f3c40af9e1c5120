"""Names in the certificates of edges: those that may link, and the edge ids that each may use."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

#: Between a certificate's name and the rest of an edge id: no DNS name contains it, nor does a SPIFFE ID.
SEPARATOR = "#"

_ANY = "*"
_DNS = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_URI = re.compile(r"[a-z][a-z0-9+.-]*://[^\s#?*]+")


class CertificateNames:
    """Names (SAN: DNS or URI) that make a certificate an edge's.

    A pattern is a name; one label of a DNS name, or one segment of a URI, may be `*`, which stands for any
    one label or segment. DNS names are compared without case.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        """Raises ValueError for an invalid pattern."""
        self._patterns = [_checked(pattern) for pattern in patterns]

    def matching(self, dns: Iterable[str], uris: Iterable[str]) -> tuple[str, ...]:
        """The names of a certificate that may link."""
        known = [name.lower().removesuffix(".") for name in dns]
        names = [name for name in known if _DNS.fullmatch(name)]
        names += [uri for uri in uris if _URI.fullmatch(uri)]
        return tuple(name for name in names if any(_matches(name, each) for each in self._patterns))


def allows_edge_id(names: Iterable[str], edge_id: str) -> bool:
    """Whether an edge with one of these names may use an id: the name, or the name, `#` and anything."""
    own = edge_id.partition(SEPARATOR)[0]
    return any(name == (own if "://" in name else own.lower()) for name in names)


def _checked(pattern: str) -> str:
    is_uri = "://" in pattern
    pattern = pattern if is_uri else pattern.lower().removesuffix(".")
    parts = _parts(pattern)
    # A name in place of the star: the rest must be one.
    example = ("/" if is_uri else ".").join("x" if part == _ANY else part for part in parts)
    if parts.count(_ANY) > 1 or not (_URI if is_uri else _DNS).fullmatch(example):
        raise ValueError(f"{pattern!r} is no DNS name or URI, in which one label or segment may be *")
    return pattern


def _matches(name: str, pattern: str) -> bool:
    if ("://" in name) != ("://" in pattern):
        return False
    parts, expected = _parts(name), _parts(pattern)
    return len(parts) == len(expected) and all(
        part == wanted or (wanted == _ANY and part) for part, wanted in zip(parts, expected, strict=True)
    )


def _parts(name: str) -> list[str]:
    return name.split("/" if "://" in name else ".")
