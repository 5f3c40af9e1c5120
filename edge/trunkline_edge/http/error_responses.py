"""A refusal as an HTTP response: google.rpc.Status in JSON."""

from __future__ import annotations

from collections.abc import Awaitable

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused

from trunkline_edge import http_errors
from trunkline_edge.http.router_client import CallFailed

_log = structlog.get_logger()

#: HTTP status by google.rpc.Code, as that file says, for what the catalogue does not know.
STATUS = {
    1: 499, 2: 500, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429,
    9: 400, 10: 409, 11: 400, 12: 501, 13: 500, 14: 503, 15: 500, 16: 401,
}  # fmt: skip


async def answered(request: Request, responding: Awaitable[Response]) -> Response:
    """The response to a request, also where making one fails: it never does so with a traceback."""
    try:
        return await responding
    except CallFailed as failed:
        return failure_response(failed)
    except Refused as refused:
        return failure_response(CallFailed.of(refused))
    except ClientDisconnect:
        return Response(status_code=499)
    except Exception:
        _log.exception("an HTTP request failed", path=request.scope["path"])
        return failure_response(CallFailed.of(catalogue.INTERNAL.refused()))


def http_status(failure: CallFailed) -> int:
    """The HTTP status of a refusal."""
    entry = catalogue.ENTRIES.get(failure.reason)
    return (entry.http_status if entry else 0) or STATUS.get(failure.status, 500)


def failure_response(failure: CallFailed, headers: dict[str, str] | None = None) -> Response:
    """The whole response."""
    status, own, body = http_errors.rendered(
        http_status(failure), failure.status, failure.message, failure.details, failure.retry_after_ms
    )
    if status == 408:
        # What is still to come of the request is not waited for.
        own |= {"connection": "close"}
    return Response(body, status, own | (headers or {}), http_errors.JSON)
