"""Calls to the router on behalf of HTTP requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

import grpc
import grpc.aio
import structlog
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from trunkline.v1 import catalogue
from trunkline_runtime.refusals import details_of, read_status, to_status

from trunkline_edge.router_channel import RouterChannelFactory

_log = structlog.get_logger()

TIMEOUT_S = 10.0

OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    # Whether to try again is the caller's to say: the router may have done what was asked.
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    # Instead of gRPC's 120 s, so that a router that is back is found at once.
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 3000),
]


class CallFailed(Exception):
    """A call was refused or failed. `status` is the router's, or an equivalent one made here."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status
        #: The catalogue's code, or the name of a gRPC code that came without one.
        self.reason = details_of(status).reason


class RouterClient:
    """One channel to a router, connected by the first call. To be closed when no more calls are made.

    Where certificates have changed, later calls are made on another one.
    """

    def __init__(self, router: str, way: RouterChannelFactory | None = None) -> None:
        self._router = router
        self._way = way or RouterChannelFactory()
        #: The last one is for new calls; on those before it are calls that were made before, if any.
        self._channels: list[grpc.aio.Channel] = []
        self._credentials: grpc.ChannelCredentials | None = None
        self._closed = False
        self._callables: dict[str, Callable[..., Any]] = {}

    async def close(self) -> None:
        """End the calls under way, which fail with RESTARTING like all later ones."""
        self._closed = True
        for channel in self._channels:
            await channel.close()

    async def unary(
        self,
        method: MethodDescriptor,
        request: Message,
        *,
        metadata: Sequence[tuple[str, str]] = (),
        timeout_s: float = TIMEOUT_S,
    ) -> Message:
        """Call an RPC, once. Raises CallFailed."""
        call = self._callable(method)(request, metadata=(*self._way.metadata, *metadata), timeout=timeout_s)
        try:
            return cast("Message", await call)
        except grpc.aio.AioRpcError as error:
            raise _failure(error, method) from None
        except asyncio.CancelledError:
            self._raise_if_closed()
            raise

    async def stream(
        self,
        method: MethodDescriptor,
        request: Message,
        *,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> AsyncIterator[Message]:
        """Call an RPC whose answer is a stream; it is cancelled with `aclose`. Raises CallFailed."""
        call = self._callable(method)(request, metadata=(*self._way.metadata, *metadata))
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise _failure(error, method) from None
        except asyncio.CancelledError:
            self._raise_if_closed()
            raise
        finally:
            call.cancel()

    def _callable(self, method: MethodDescriptor) -> Callable[..., Any]:
        if self._closed:
            raise CallFailed(to_status(catalogue.RESTARTING.refused()))
        credentials = self._way.credentials
        if not self._channels or credentials is not self._credentials:
            # Not before there is a loop to run on.
            self._channels.append(self._way.open(self._router, OPTIONS))
            self._credentials = credentials
            self._callables.clear()
        found = self._callables.get(method.full_name)
        if found is None:
            channel = self._channels[-1]
            make = channel.unary_stream if method.server_streaming else channel.unary_unary
            found = self._callables[method.full_name] = make(
                f"/{method.containing_service.full_name}/{method.name}",
                request_serializer=GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
        return found

    def _raise_if_closed(self) -> None:
        """Closing the channel looks to a waiting caller as if itself had been cancelled."""
        task = asyncio.current_task()
        if self._closed and (task is None or not task.cancelling()):
            raise CallFailed(to_status(catalogue.RESTARTING.refused())) from None


def _failure(error: grpc.aio.AioRpcError, method: MethodDescriptor) -> CallFailed:
    """The failure that a gRPC error stands for; one without details gets an entry of the catalogue."""
    status = read_status(error.trailing_metadata())
    if details_of(status).reason:
        return CallFailed(status)
    match error.code():
        # A router that is killed cancels the calls under way.
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return CallFailed(to_status(catalogue.ROUTER_UNAVAILABLE.refused()))
        case grpc.StatusCode.UNKNOWN | grpc.StatusCode.INTERNAL:
            _log.error("a call failed", rpc=method.full_name, problem=error.details())
            return CallFailed(to_status(catalogue.INTERNAL.refused()))
        case code:
            text = "The router did not answer in time; it may have done the request or not"
            if code is not grpc.StatusCode.DEADLINE_EXCEEDED:
                text = error.details() or code.name
            status = Status(code=code.value[0], message=text)
            status.details.add().Pack(ErrorInfo(reason=code.name, domain="grpc"))
            return CallFailed(status)
