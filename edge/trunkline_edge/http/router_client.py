"""Client of the router's RPCs, for HTTP requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
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
from trunkline_runtime.router_addresses import RouterAddresses

from trunkline_edge.router_channel import RouterChannelFactory

_log = structlog.get_logger()

READY = grpc.ChannelConnectivity.READY
FAILED = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)

TIMEOUT_S = 10.0
#: Bound of connecting to one of several routers; then the next one is called.
CONNECT_TIMEOUT_S = 2.0
#: Of a call whose time was used up by other routers.
MIN_TIMEOUT_S = 0.001

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
    """Calls the router that the edge is linked to. Close it when no more calls follow.

    With several routers a call goes on to the next one, at most once to each, if it was certainly not made:
    there is no connection, or the router is a standby.
    """

    def __init__(self, routers: RouterAddresses, channel_factory: RouterChannelFactory | None = None) -> None:
        self._routers = routers
        factory = self._channel_factory = channel_factory or RouterChannelFactory()
        self._channels = {router: RouterCallables(router, factory) for router in routers}
        #: Calls under way, and their routers.
        self._calls: dict[grpc.aio.Call, str] = {}
        self._closed = False

    async def close(self) -> None:
        """Close all channels. Calls in flight and later ones fail with RESTARTING."""
        self._closed = True
        for each in self._channels.values():
            await each.close()

    def follow_link(self) -> None:
        """End the calls at routers that the edge is no longer linked to, with ROUTER_UNAVAILABLE.

        Such a router may be frozen.
        """
        for call, router in list(self._calls.items()):
            if router != self._routers.in_use:
                call.cancel()

    async def unary(
        self,
        method: MethodDescriptor,
        request: Message,
        *,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        timeout_s: float = TIMEOUT_S,
    ) -> Message:
        """Call a unary RPC, without retries. Raises CallFailed."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        metadata = (*self._channel_factory.metadata, *metadata)
        for router in self._routers.in_order():
            if not await self._can_call(router, deadline):
                continue
            call = self._callable(router, method)(
                request, metadata=metadata, timeout=max(deadline - loop.time(), MIN_TIMEOUT_S)
            )
            with self._failures_of(call, router, method):
                return cast("Message", await call)
        raise CallFailed(to_status(catalogue.ROUTER_UNAVAILABLE.refused()))

    async def stream(
        self,
        method: MethodDescriptor,
        request: Message,
        *,
        metadata: Sequence[tuple[str, str | bytes]] = (),
    ) -> AsyncIterator[Message]:
        """Call a server-streaming RPC; `aclose` cancels it. Raises CallFailed."""
        deadline = asyncio.get_running_loop().time() + TIMEOUT_S
        metadata = (*self._channel_factory.metadata, *metadata)
        for router in self._routers.in_order():
            if not await self._can_call(router, deadline):
                continue
            call = self._callable(router, method)(request, metadata=metadata)
            try:
                # A standby refuses a call before its first message.
                with self._failures_of(call, router, method):
                    async for message in call:
                        yield message
                    return
            finally:
                call.cancel()
        raise CallFailed(to_status(catalogue.ROUTER_UNAVAILABLE.refused()))

    async def _can_call(self, router: str, deadline: float) -> bool:
        """Connect if there is another router to call instead."""
        if len(self._routers) == 1:
            return True
        self._raise_if_closing()
        loop = asyncio.get_running_loop()
        return await self._channels[router].connect(min(deadline, loop.time() + CONNECT_TIMEOUT_S))

    def _callable(self, router: str, method: MethodDescriptor) -> Callable[..., Any]:
        self._raise_if_closing()
        return self._channels[router].callable(method)

    @contextmanager
    def _failures_of(self, call: grpc.aio.Call, router: str, method: MethodDescriptor) -> Iterator[None]:
        """Raises CallFailed if a call within the block fails, unless the router refused it as a standby."""
        self._calls[call] = router
        try:
            yield
        except grpc.aio.AioRpcError as error:
            failure = _failure(error, method)
            if failure.reason != catalogue.ROUTER_STANDBY.code:
                raise failure from None
        except asyncio.CancelledError:
            self._raise_if_not_by_caller()
            raise
        finally:
            del self._calls[call]

    def _raise_if_closing(self) -> None:
        if self._closed:
            raise CallFailed(to_status(catalogue.RESTARTING.refused()))

    def _raise_if_not_by_caller(self) -> None:
        """Raises CallFailed if something other than a cancel of the caller's task cancelled the call."""
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return
        reason = catalogue.RESTARTING if self._closed else catalogue.ROUTER_UNAVAILABLE
        raise CallFailed(to_status(reason.refused())) from None


class RouterCallables:
    """RPCs of one router, over a channel that the first call opens.

    After certificates changed, new calls use a new channel.
    """

    def __init__(self, router: str, channel_factory: RouterChannelFactory) -> None:
        self._router = router
        self._channel_factory = channel_factory
        #: New calls use the last one; earlier ones finish the calls that were made on them.
        self._channels: list[grpc.aio.Channel] = []
        self._credentials: grpc.ChannelCredentials | None = None
        self._callables: dict[str, Callable[..., Any]] = {}

    async def close(self) -> None:
        """Close all channels, which cancels their calls."""
        for channel in self._channels:
            await channel.close()

    async def connect(self, deadline: float) -> bool:
        """Connect; return False if that fails or takes until the deadline, on the loop's clock."""
        channel = self._current_channel()
        try:
            async with asyncio.timeout_at(deadline):
                while (state := channel.get_state(try_to_connect=True)) is not READY:
                    if state in FAILED:
                        return False
                    await channel.wait_for_state_change(state)
        except (TimeoutError, grpc.aio.UsageError):
            return False
        return True

    def callable(self, method: MethodDescriptor) -> Callable[..., Any]:
        """The function that calls an RPC."""
        channel = self._current_channel()
        found = self._callables.get(method.full_name)
        if found is None:
            create = channel.unary_stream if method.server_streaming else channel.unary_unary
            found = self._callables[method.full_name] = create(
                f"/{method.containing_service.full_name}/{method.name}",
                request_serializer=GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
        return found

    def _current_channel(self) -> grpc.aio.Channel:
        credentials = self._channel_factory.credentials
        if not self._channels or credentials is not self._credentials:
            # Lazily, because a channel needs a running loop.
            self._channels.append(self._channel_factory.open(self._router, OPTIONS))
            self._credentials = credentials
            self._callables.clear()
        return self._channels[-1]


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
