"""The one place where a refusal becomes a gRPC status."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio
import structlog
from google.protobuf.any_pb2 import Any as AnyProto
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused

from trunkline_router.log.interface import LogUnavailable
from trunkline_router.rpc.tenant_lock import rest
from trunkline_router.runtime import CALL, UNGUARDED, PendingCall

_log = structlog.get_logger()

_Context = grpc.aio.ServicerContext[Any, Any]

DOMAIN = "trunkline"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


async def abort(context: _Context, reason: Refused) -> NoReturn:
    """End an RPC with a refusal: status, text, and ErrorInfo and RetryInfo as details.

    The metadata of ErrorInfo is what completes the text, such as the index that is `expected`.
    """
    entry = reason.entry
    status = Status(code=entry.grpc_status, message=str(reason))
    values = {name: str(value) for name, value in reason.values.items()}
    status.details.add().Pack(ErrorInfo(reason=entry.code, domain=DOMAIN, metadata=values))
    if entry.retryable:
        delay = Duration()
        delay.FromMilliseconds(reason.retry_after_ms)
        detail = AnyProto()
        detail.Pack(RetryInfo(retry_delay=delay))
        status.details.append(detail)
    metadata = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(_CODES[entry.grpc_status], str(reason), metadata)
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
