"""Client of the router's RPCs, for HTTP requests."""

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
    # Callers decide on retries, because the router may have done the request.
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    # Instead of gRPC's 120 s, to reconnect soon after a restart.
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
    """A channel to a router, connected by the first call. Close it when no more calls follow.

    After certificates changed, new calls use a new channel.
    """

    def __init__(self, router: str, channel_factory: RouterChannelFactory | None = None) -> None:
        self._router = router
        self._channel_factory = channel_factory or RouterChannelFactory()
        #: New calls use the last one; earlier ones finish the calls that were made on them.
        self._channels: list[grpc.aio.Channel] = []
        self._credentials: grpc.ChannelCredentials | None = None
        self._closed = False
        self._callables: dict[str, Callable[..., Any]] = {}

    async def close(self) -> None:
        """Close all channels. Calls in flight and later ones fail with RESTARTING."""
        self._closed = True
        for channel in self._channels:
            await channel.close()

    async def unary(
        self,
        method: MethodDescriptor,
        request: Message,
        *,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        timeout_s: float = TIMEOUT_S,
    ) -> Message:
        """Call a unary RPC, without retries. Raises CallFailed."""
        call = self._callable(method)(
            request, metadata=(*self._channel_factory.metadata, *metadata), timeout=timeout_s
        )
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
        metadata: Sequence[tuple[str, str | bytes]] = (),
    ) -> AsyncIterator[Message]:
        """Call a server-streaming RPC; `aclose` cancels it. Raises CallFailed."""
        call = self._callable(method)(request, metadata=(*self._channel_factory.metadata, *metadata))
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
        credentials = self._channel_factory.credentials
        if not self._channels or credentials is not self._credentials:
            # Lazily, because a channel needs a running loop.
            self._channels.append(self._channel_factory.open(self._router, OPTIONS))
            self._credentials = credentials
            self._callables.clear()
        found = self._callables.get(method.full_name)
        if found is None:
            channel = self._channels[-1]
            create = channel.unary_stream if method.server_streaming else channel.unary_unary
            found = self._callables[method.full_name] = create(
                f"/{method.containing_service.full_name}/{method.name}",
                request_serializer=GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
        return found

    def _raise_if_closed(self) -> None:
        """Raises CallFailed if closing the channel, rather than the caller's task, cancelled the call."""
        task = asyncio.current_task()
        if self._closed and (task is None or not task.cancelling()):
            raise CallFailed(to_status(catalogue.RESTARTING.refused())) from None


def _failure(error: grpc.aio.AioRpcError, method: MethodDescriptor) -> CallFailed:
    """The failure that a gRPC error stands for; one without details gets an entry of the catalogue."""
    status = read_status(error.trailing_metadata())
    if details_of(status).reason:
        return CallFailed(status)
    match error.code():
        # A router that is killed cancels the calls in flight.
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
