"""Turns failures of HTTP requests into Starlette responses."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol, TypeVar

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused

from trunkline_edge import http_errors
from trunkline_edge.http.router_client import CallFailed

_log = structlog.get_logger()

R = TypeVar("R", bound=ASGIApp)


class RenderFailure(Protocol):
    """Renders a failure as a response, with `headers` added."""

    def __call__(self, reason: CallFailed | Refused, headers: dict[str, str] | None = None) -> Response: ...


def failure_response(reason: CallFailed | Refused, headers: dict[str, str] | None = None) -> Response:
    """The error response in the contract's form, with `headers` added."""
    if isinstance(reason, Refused):
        status, own, body, media_type = http_errors.error_response(reason)
    else:
        status, own, body, media_type = http_errors.status_response(reason.status)
    if status == 408:
        # The rest of the request is not awaited, so the connection cannot be reused.
        own |= {"connection": "close"}
    return Response(body, status, own | (headers or {}), media_type)


async def respond(
    request: Request, response: Awaitable[R], render: RenderFailure = failure_response
) -> R | Response:
    """Await a response; a failure becomes an error response and never a traceback."""
    try:
        return await response
    except (CallFailed, Refused) as reason:
        return render(reason)
    except ClientDisconnect:
        return Response(status_code=499)
    except Exception:
        _log.exception("an HTTP request failed", path=request.scope["path"])
        return render(catalogue.INTERNAL.refused())
