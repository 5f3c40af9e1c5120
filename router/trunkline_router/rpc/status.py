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

from trunkline_router.active_call import ACTIVE_CALL, UNCHECKED_CALL, ActiveCall
from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log_reads import refusal_of
from trunkline_router.rpc.call_queueing import wait_in_tarpit

_log = structlog.get_logger()

_Context = grpc.aio.ServicerContext[Any, Any]

_CODES = {code.value[0]: code for code in grpc.StatusCode}


async def abort(context: _Context, reason: Refused) -> NoReturn:
    """End an RPC with a refusal: gRPC status, text, and google.rpc.Status in the trailing metadata."""
    status = to_status(reason)
    metadata = ((STATUS_METADATA, status.SerializeToString()),)
    await context.abort(_CODES[status.code], status.message, metadata)
    raise AssertionError("abort raises")


async def refuse(context: _Context, reason: Refused, call: ActiveCall) -> NoReturn:
    """Count a refusal for its tenant, delay it if the caller needs slowing down, and end the RPC with it."""
    if call.charged_tenant is not None:
        call.charged_tenant.refused[reason.entry.code] += 1
    if tarpit := call.tarpit_for(reason):
        # Its bound in bytes is for requests that wait with their refusals, not for parts of a stream.
        await wait_in_tarpit(tarpit, 0 if call.is_stream else call.request_bytes, context)
    await abort(context, reason)


def rpc_method(method: Callable[..., Awaitable[Any]]) -> Any:
    """Wrap a servicer's method: exceptions become statuses of the catalogue, never a traceback."""

    async def serve(self: Any, request: Any, context: _Context) -> Any:
        try:
            return await method(self, request, context)
        except Refused as reason:
            await refuse(context, reason, ACTIVE_CALL.get(UNCHECKED_CALL))
        except LogUnavailable as error:
            await abort(context, refusal_of(error))
        except (grpc.aio.AbortError, grpc.aio.UsageError):
            raise
        except Exception:
            _log.exception("RPC failed", rpc=method.__name__)
            await abort(context, catalogue.INTERNAL.refused())

    serve.__name__ = method.__name__
    serve.__doc__ = method.__doc__
    return serve
