"""A prefix of all paths on the port, for an edge that shares a host name with other services."""

from __future__ import annotations

import re
from typing import Annotated

import h11
from pydantic import AfterValidator
from trunkline.v1 import catalogue

#: Served without the prefix, too: whoever probes a process reaches it directly.
PROBES = frozenset({b"/healthz", b"/readyz", b"/metrics"})

_PREFIX = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)*")


def _checked(prefix: str) -> str:
    prefix = prefix.rstrip("/")
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(f"must be a path such as /chat, of letters, digits and ._~-; it is {prefix!r}")
    return prefix


#: A setting; empty for none.
PathPrefix = Annotated[str, AfterValidator(_checked)]


def without_prefix(request: h11.Request, prefix: bytes) -> h11.Request:
    """Return a request with the path that routes have. Raises Refused NO_SUCH_PATH for a path outside."""
    if not prefix:
        return request
    path, mark, query = request.target.partition(b"?")
    if path in PROBES or path == b"*":
        return request
    inner = path.removeprefix(prefix)
    if inner == path or not (inner.startswith(b"/") or not inner):
        raise catalogue.NO_SUCH_PATH.refused(path=path.decode("ascii"))
    return h11.Request(
        method=request.method,
        target=(inner or b"/") + mark + query,
        headers=request.headers.raw_items(),
        http_version=request.http_version,
    )
