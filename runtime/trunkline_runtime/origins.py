"""Origins of web pages."""

from __future__ import annotations

#: Ports that browsers leave out of an origin, by scheme.
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def normal_origin(origin: str) -> str:
    """A declared origin as browsers write it: in lower case, and without the scheme's default port."""
    scheme, _, authority = origin.lower().partition("://")
    return f"{scheme}://{authority.removesuffix(_DEFAULT_PORTS.get(scheme, ':'))}"
