"""One backend's gRPC connection to a router, and the failures of calls over it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
import grpc.aio
from trunkline.v1.agent_service_pb2_grpc import AgentServiceStub
from trunkline.v1.broadcast_service_pb2_grpc import BroadcastServiceStub
from trunkline.v1.history_service_pb2_grpc import HistoryServiceStub
from trunkline.v1.presence_service_pb2_grpc import PresenceServiceStub

from trunkline_client.channel import describe_proxy, open_channel
from trunkline_client.errors import OutcomeUnknown, Unreachable
from trunkline_client.rpc_errors import error_from_rpc

T = TypeVar("T")

#: Any unary method fails in the same way while there is no connection; this one changes nothing.
_PROBE = "/grpc.health.v1.Health/Check"


class RouterConnection:
    """The stubs over one channel, and unary calls whose failures state what is known of their effect.

    A call is sent only once the channel is connected. So a failure to connect is certain to have had no
    effect and raises Unreachable; a failure after that raises OutcomeUnknown, unless the call only reads.
    """

    def __init__(
        self,
        router: str,
        credentials: grpc.ChannelCredentials | None,
        api_key: str,
        timeout_s: float,
        *,
        use_proxy: bool = False,
    ) -> None:
        self.router = router
        self._timeout_s = timeout_s
        self._channel = open_channel(router, credentials, api_key, use_proxy=use_proxy)
        self._use_proxy = use_proxy
        self.is_closed = False
        self.broadcast = BroadcastServiceStub(self._channel)
        self.history = HistoryServiceStub(self._channel)
        self.presence = PresenceServiceStub(self._channel)
        self.agents = AgentServiceStub(self._channel)

    async def close(self) -> None:
        """Closes the channel; calls under way fail. Idempotent."""
        self.is_closed = True
        await self._channel.close()

    async def read(self, method: Callable[..., Awaitable[T]], request: Any) -> T:
        """Makes a call that changes nothing. Raises Refused or Unreachable."""
        return await self._call(method, request, may_have_effect=False)

    async def call_mutating(self, method: Callable[..., Awaitable[T]], request: Any) -> T:
        """Makes a call that changes something. Raises Refused, Unreachable or OutcomeUnknown."""
        return await self._call(method, request, may_have_effect=True)

    async def _call(self, method: Callable[..., Awaitable[T]], request: Any, *, may_have_effect: bool) -> T:
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        with self.translated_errors(may_have_effect=False):
            await self._connect_until(deadline)
        with self.translated_errors(may_have_effect=may_have_effect):
            return await method(request, timeout=max(deadline - asyncio.get_running_loop().time(), 0.001))

    @contextmanager
    def translated_errors(self, *, may_have_effect: bool) -> Iterator[None]:
        """Raises Refused or a TransportError if a call within the block fails or the backend is closed."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, self.router, may_have_effect=may_have_effect) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self.is_closed or (task is not None and task.cancelling()):
                raise
            # Closing a channel cancels its calls, which looks like a cancel of the caller.
            reason = "the backend was closed before the router answered"
            if may_have_effect:
                raise OutcomeUnknown(f"No answer from {self.router}: {reason}") from None
            raise Unreachable(self.router, reason) from None

    async def _connect_until(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self._connect()
        except TimeoutError:
            raise Unreachable(self.router, f"no connection within {self._timeout_s:g} s") from None
        except grpc.aio.UsageError:
            raise Unreachable(self.router, "the backend was closed") from None

    async def _connect(self) -> None:
        """Waits until the channel is connected. Raises Unreachable if an attempt to connect fails."""
        while (state := self._state()) is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                await self._raise_failure()
            else:
                await self._channel.wait_for_state_change(state)

    def _state(self) -> grpc.ChannelConnectivity:
        if self.is_closed:
            raise Unreachable(self.router, "the backend was closed")
        return self._channel.get_state(try_to_connect=True)

    async def _raise_failure(self) -> None:
        """Raises Unreachable with the reason, which only a failed call has; returns if connected again."""
        probe: Any = self._channel.unary_unary(_PROBE)
        try:
            await probe(b"", timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                problem = error.details() or "the connection failed"
                raise Unreachable(self.router, problem + describe_proxy(self._use_proxy)) from None
