"""Ends RPCs with the status of a refusal, and counts the refusals."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio
import structlog
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline_runtime.refusals import STATUS_METADATA, to_status

from trunkline_router.log.interface import LogUnavailable
from trunkline_router.rpc.tenant_lock import rest
from trunkline_router.runtime import CALL, UNGUARDED, PendingCall

_log = structlog.get_logger()

_Context = grpc.aio.ServicerContext[Any, Any]

_CODES = {code.value[0]: code for code in grpc.StatusCode}


async def abort(context: _Context, reason: Refused) -> NoReturn:
    """End an RPC with a refusal: gRPC status, text, and google.rpc.Status in the trailing metadata."""
    status = to_status(reason)
    metadata = ((STATUS_METADATA, status.SerializeToString()),)
    await context.abort(_CODES[status.code], status.message, metadata)
    raise AssertionError("abort raises")


async def refuse(context: _Context, reason: Refused, call: PendingCall) -> NoReturn:
    """Count a refusal, and end the RPC with it when it is time to."""
    if call.concerns is not None:
        call.concerns.refused[reason.entry.code] += 1
    if resting := call.rests_in(reason):
        await rest(resting, call.size, context)
    await abort(context, reason)


def answers(handler: Callable[..., Awaitable[Any]]) -> Any:
    """Wrap an RPC: what it raises becomes a status of the catalogue, and never a traceback."""

    async def answered(self: Any, request: Any, context: _Context) -> Any:
        try:
            return await handler(self, request, context)
        except Refused as reason:
            await refuse(context, reason, CALL.get(UNGUARDED))
        except LogUnavailable:
            await abort(context, catalogue.LOG_UNAVAILABLE.refused())
        except (grpc.aio.AbortError, grpc.aio.UsageError):
            raise
        except Exception:
            _log.exception("an RPC failed", rpc=handler.__name__)
            await abort(context, catalogue.INTERNAL.refused())

    answered.__name__ = handler.__name__
    answered.__doc__ = handler.__doc__
    return answered
