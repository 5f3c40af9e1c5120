"""A channel whose calls go to the router in use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from trunkline_client.router_choice import RouterChoice


class FollowingChannel:
    """A channel to each of several routers, opened when needed; a call goes to the current router.

    Stubs take it for a channel.
    """

    def __init__(self, routers: RouterChoice, open_channel: Callable[[str], grpc.aio.Channel]) -> None:
        self._routers = routers
        self._open_channel = open_channel
        self._channels: dict[str, grpc.aio.Channel] = {}
        self.unary_unary = self._rpcs("unary_unary")
        self.unary_stream = self._rpcs("unary_stream")
        self.stream_unary = self._rpcs("stream_unary")
        self.stream_stream = self._rpcs("stream_stream")

    def to(self, router: str) -> grpc.aio.Channel:
        """The channel to a router."""
        channel = self._channels.get(router)
        if channel is None:
            channel = self._channels[router] = self._open_channel(router)
        return channel

    async def close(self) -> None:
        """Closes all channels; calls under way fail. Idempotent."""
        for channel in self._channels.values():
            await channel.close()

    def _rpcs(self, kind: str) -> Callable[..., Callable[..., Any]]:
        def make(*args: Any, **named: Any) -> Callable[..., Any]:
            made: dict[str, Callable[..., Any]] = {}

            def call(*call_args: Any, **call_named: Any) -> Any:
                router = self._routers.current
                rpc = made.get(router)
                if rpc is None:
                    rpc = made[router] = getattr(self.to(router), kind)(*args, **named)
                return rpc(*call_args, **call_named)

            return call

        return make
