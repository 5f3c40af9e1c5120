"""One backend's gRPC connections to its routers, and the failures of calls over them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
from trunkline.v1.agent_service_pb2_grpc import AgentServiceStub
from trunkline.v1.broadcast_service_pb2_grpc import BroadcastServiceStub
from trunkline.v1.history_service_pb2_grpc import HistoryServiceStub
from trunkline.v1.presence_service_pb2_grpc import PresenceServiceStub

from trunkline_client.channel import describe_proxy, open_channel
from trunkline_client.clock import Clock
from trunkline_client.errors import OutcomeUnknown, Refused, TransportError, Unreachable
from trunkline_client.following_channel import FollowingChannel
from trunkline_client.router_choice import RouterChoice, is_refusal_of_standby
from trunkline_client.rpc_errors import error_from_rpc
from trunkline_client.takeover_watch import TakeoverWatch

T = TypeVar("T")

#: Any unary method fails in the same way while there is no connection; this one changes nothing.
_PROBE = "/grpc.health.v1.Health/Check"


class RouterConnection:
    """The stubs of the router in use, and unary calls whose failures state what is known of their effect.

    A call is sent only once the channel is connected. So a failure to connect is certain to have had no
    effect and raises Unreachable; a failure after that raises OutcomeUnknown, unless the call only reads.

    With several routers a call goes on to the next one, at most once to each, if it certainly had no effect
    because there is no connection, or because the router refused it as a standby.
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
        self.routers = RouterChoice(router)
        self._timeout_s = timeout_s
        self._channels = FollowingChannel(
            self.routers,
            partial(open_channel, credentials=credentials, api_key=api_key, use_proxy=use_proxy),
        )
        self._use_proxy = use_proxy
        self.is_closed = False
        channel = cast("grpc.aio.Channel", self._channels)
        self.broadcast = BroadcastServiceStub(channel)
        self.history = HistoryServiceStub(channel)
        self.presence = PresenceServiceStub(channel)
        self.agents = AgentServiceStub(channel)

    async def close(self) -> None:
        """Closes the channels; calls under way fail. Idempotent."""
        self.is_closed = True
        await self._channels.close()

    def takeovers(self, clock: Clock) -> TakeoverWatch:
        """Watches for another router that takes over, while a stream is open."""
        return TakeoverWatch(self.routers, self._channels, clock)

    async def read(self, method: Callable[..., Awaitable[T]], request: Any) -> T:
        """Makes a call that changes nothing. Raises Refused or Unreachable."""
        return await self._call(method, request, may_have_effect=False)

    async def call_mutating(self, method: Callable[..., Awaitable[T]], request: Any) -> T:
        """Makes a call that changes something. Raises Refused, Unreachable or OutcomeUnknown."""
        return await self._call(method, request, may_have_effect=True)

    async def read_stream(
        self, method: Callable[..., grpc.aio.UnaryStreamCall[Any, T]], request: Any
    ) -> AsyncGenerator[T, None]:
        """Iterates over a stream that changes nothing; ends with it. Raises Refused or Unreachable."""
        router, call, received = await self._try_each(partial(self._begin_stream, method, request))
        try:
            while received is not grpc.aio.EOF:
                yield cast("T", received)
                with self.translated_errors(router, may_have_effect=False):
                    received = await call.read()
        except Unreachable:
            self.routers.leave(router)
            raise
        finally:
            call.cancel()

    async def _begin_stream(
        self, method: Callable[..., grpc.aio.UnaryStreamCall[Any, T]], request: Any, router: str, _: float
    ) -> tuple[str, grpc.aio.UnaryStreamCall[Any, T], object]:
        call = method(request)
        try:
            with self.translated_errors(router, may_have_effect=False):
                return router, call, await call.read()
        except BaseException:
            call.cancel()
            raise

    async def _call(self, method: Callable[..., Awaitable[T]], request: Any, *, may_have_effect: bool) -> T:
        async def call(router: str, deadline: float) -> T:
            try:
                with self.translated_errors(router, may_have_effect=may_have_effect):
                    remaining_s = deadline - asyncio.get_running_loop().time()
                    return await method(request, timeout=max(remaining_s, 0.001))
            except TransportError:
                # The next call asks another router first.
                self.routers.leave(router)
                raise

        return await self._try_each(call)

    async def _try_each(self, call: Callable[[str, float], Awaitable[T]]) -> T:
        """Makes a call at the first router that can be connected to and is no standby.

        `call` gets the router and the deadline.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        routers = self.routers.in_order()
        problems: dict[str, Refused | Unreachable] = {}
        for router in routers:
            share_s = (deadline - loop.time()) / (len(routers) - len(problems))
            try:
                await self._connect_until(router, loop.time() + share_s)
            except Unreachable as error:
                if self.is_closed:
                    raise
                problems[router] = error
                continue
            # Stubs call the current router; nothing else runs between here and the call.
            self.routers.current = router
            try:
                return await call(router, deadline)
            except Refused as error:
                if not is_refusal_of_standby(error):
                    raise
                problems[router] = error
        raise self._none_serves(problems)

    def _none_serves(self, problems: dict[str, Refused | Unreachable]) -> Refused | Unreachable:
        if len(problems) == 1:
            return next(iter(problems.values()))
        reasons = [
            f"{router}: {error.message if isinstance(error, Refused) else error.reason}"
            for router, error in problems.items()
        ]
        return Unreachable(str(self.routers), "; ".join(reasons))

    @contextmanager
    def translated_errors(self, router: str, *, may_have_effect: bool) -> Iterator[None]:
        """Raises Refused or a TransportError if a call within the block fails or the backend is closed."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, router, may_have_effect=may_have_effect) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self.is_closed or (task is not None and task.cancelling()):
                raise
            # Closing a channel cancels its calls, which looks like a cancel of the caller.
            reason = "the backend was closed before the router answered"
            if may_have_effect:
                raise OutcomeUnknown(f"No answer from {router}: {reason}") from None
            raise Unreachable(router, reason) from None

    async def _connect_until(self, router: str, deadline: float) -> None:
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(deadline):
                with self.translated_errors(router, may_have_effect=False):
                    await self._connect(router)
        except TimeoutError:
            raise Unreachable(router, f"no connection within {round(deadline - started, 2):g} s") from None
        except grpc.aio.UsageError:
            raise Unreachable(router, "the backend was closed") from None

    async def _connect(self, router: str) -> None:
        """Waits until the channel is connected. Raises Unreachable if an attempt to connect fails."""
        while (state := self._state(router)) is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                await self._raise_failure(router)
            else:
                await self._channels.to(router).wait_for_state_change(state)

    def _state(self, router: str) -> grpc.ChannelConnectivity:
        if self.is_closed:
            raise Unreachable(router, "the backend was closed")
        return self._channels.to(router).get_state(try_to_connect=True)

    async def _raise_failure(self, router: str) -> None:
        """Raises Unreachable with the reason, which only a failed call has; returns if connected again."""
        probe: Any = self._channels.to(router).unary_unary(_PROBE)
        try:
            await probe(b"", timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                problem = error.details() or "the connection failed"
                raise Unreachable(router, problem + describe_proxy(self._use_proxy)) from None
