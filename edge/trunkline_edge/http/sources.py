"""Sources of HTTP requests, read once for each."""

from __future__ import annotations

from starlette.requests import Request

from trunkline_edge.auth.request_source import RequestSource

#: Entry of a request's ASGI scope.
_SOURCE = "trunkline.source"


def source_of(request: Request) -> RequestSource:
    """The source of a request, read once."""
    source: RequestSource | None = request.scope.get(_SOURCE)
    if source is None:
        headers = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw)
        remote_ip = request.client.host if request.client else ""
        source = RequestSource.read(remote_ip, headers, request.scope.get("http_version", "1.1"))
        request.scope[_SOURCE] = source
    return source
