"""gRPC channels to a router."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import grpc
import grpc.aio

MAX_MESSAGE_BYTES = 16 << 20

#: Variables in which gRPC looks for an HTTP proxy, in this order.
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")

_OPTIONS: list[tuple[str, int]] = [
    # This package decides when to retry, so gRPC's own backoff (up to 120 s) must not hold it back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Bound of one attempt to connect: a slow network is not an unreachable router.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Clients in one process must not share a connection, nor its failures.
    ("grpc.use_local_subchannel_pool", 1),
]


def open_channel(
    router: str,
    credentials: grpc.ChannelCredentials | None = None,
    api_key: str = "",
    *,
    use_proxy: bool = False,
) -> grpc.aio.Channel:
    """Opens a channel to the router at `host:port`; unencrypted without credentials.

    The API key goes with every call. The environment's HTTP proxy is ignored unless `use_proxy` is true.
    """
    options = [*_OPTIONS, ("grpc.enable_http_proxy", int(use_proxy))]
    if credentials is None:
        channel = grpc.aio.insecure_channel(router, options=options)
    else:
        channel = grpc.aio.secure_channel(router, credentials, options=options)
    return cast("grpc.aio.Channel", _AuthenticatedChannel(channel, api_key)) if api_key else channel


def describe_proxy(use_proxy: bool) -> str:
    """The part of an error text that names the proxy; empty if the environment names none.

    Names the variable only, as its value may hold a password.
    """
    variable = next((name for name in _PROXY_VARIABLES if os.environ.get(name)), "")
    if not variable:
        return ""
    if use_proxy:
        return f" (through the proxy in {variable})"
    return f" (not through the proxy in {variable}; use_proxy=True or TRUNKLINE_ROUTER_PROXY=true uses it)"


class _AuthenticatedChannel:
    """A channel that sends an API key with every call; gRPC's own call credentials require TLS."""

    def __init__(self, channel: grpc.aio.Channel, api_key: str) -> None:
        self._metadata = (("authorization", f"Bearer {api_key}"),)
        self.close = channel.close
        self.get_state = channel.get_state
        self.wait_for_state_change = channel.wait_for_state_change
        self.unary_unary = self._add_key(channel.unary_unary)
        self.unary_stream = self._add_key(channel.unary_stream)
        self.stream_unary = self._add_key(channel.stream_unary)
        self.stream_stream = self._add_key(channel.stream_stream)

    def _add_key(self, make: Callable[..., Callable[..., Any]]) -> Callable[..., Any]:
        return lambda *args, **named: partial(make(*args, **named), metadata=self._metadata)
