"""gRPC channels to a router, and what their errors mean."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict, cast

import grpc
import grpc.aio
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from trunkline.v1.error_pb2 import Error

from trunkline_client.errors import Refused

MAX_MESSAGE_BYTES = 16 << 20

_OPTIONS: list[tuple[str, int]] = [
    # gRPC's own backoff goes up to 120 s; ours decides when to try, so its channel must not hold back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Two clients in one process must not share a connection, nor one's trouble with it.
    ("grpc.use_local_subchannel_pool", 1),
]

#: Statuses without an entry of the catalogue after which the same call may succeed later.
_TRANSIENT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNKNOWN,
    }
)


class RouterCredentials(TypedDict):
    """What a router is shown, as Backend and Worker take it."""

    credentials: grpc.ChannelCredentials | None
    api_key: str


def load_credentials(api_key: str = "", ca: str | PathLike[str] = "", tls: bool = False) -> RouterCredentials:
    """What to show a router, for `Backend(router, **load_credentials(…))`.

    TLS is spoken where `tls`, or where `ca` names a PEM file of the authorities that certify the router;
    without one those that gRPC knows do. Raises OSError where the file cannot be read.
    """
    roots = Path(ca).read_bytes() if ca else None
    credentials = grpc.ssl_channel_credentials(roots) if tls or ca else None
    return RouterCredentials(credentials=credentials, api_key=api_key)


def load_credentials_from_environment() -> RouterCredentials:
    """What TRUNKLINE_API_KEY, TRUNKLINE_CA and TRUNKLINE_TLS say. Raises OSError, see `load_credentials`."""
    env = os.environ.get
    tls = env("TRUNKLINE_TLS", "").lower() in ("1", "true", "yes", "on")
    return load_credentials(env("TRUNKLINE_API_KEY", ""), env("TRUNKLINE_CA", ""), tls)


def open_channel(
    router: str, credentials: grpc.ChannelCredentials | None = None, api_key: str = ""
) -> grpc.aio.Channel:
    """A channel to the router at `host:port`; without credentials it is not encrypted.

    The API key goes with every call.
    """
    if credentials is None:
        channel = grpc.aio.insecure_channel(router, options=_OPTIONS)
    else:
        channel = grpc.aio.secure_channel(router, credentials, options=_OPTIONS)
    return cast("grpc.aio.Channel", _AuthenticatedChannel(channel, api_key)) if api_key else channel


class _AuthenticatedChannel:
    """A channel whose calls show an API key; gRPC's own way to do that takes encrypted channels only."""

    def __init__(self, channel: grpc.aio.Channel, api_key: str) -> None:
        self._metadata = (("authorization", f"Bearer {api_key}"),)
        self.close = channel.close
        self.unary_unary = self._with_key(channel.unary_unary)
        self.unary_stream = self._with_key(channel.unary_stream)
        self.stream_unary = self._with_key(channel.stream_unary)
        self.stream_stream = self._with_key(channel.stream_stream)

    def _with_key(self, make: Callable[..., Callable[..., Any]]) -> Callable[..., Any]:
        return lambda *args, **named: partial(make(*args, **named), metadata=self._metadata)


def error_from_rpc(error: grpc.aio.AioRpcError) -> Refused:
    """What a failed call says: the catalogue's entry in its details, or else its status."""
    code, retryable, retry_after_ms = error.code().name, error.code() in _TRANSIENT, 0
    details = _details(error)
    for detail in details:
        if detail.Is(ErrorInfo.DESCRIPTOR):
            entry = ErrorInfo()
            detail.Unpack(entry)
            code = entry.reason
            # An entry that is retryable brings a RetryInfo; so codes newer than this client are understood.
            retryable = any(each.Is(RetryInfo.DESCRIPTOR) for each in details)
        elif detail.Is(RetryInfo.DESCRIPTOR):
            retry = RetryInfo()
            detail.Unpack(retry)
            retry_after_ms = retry.retry_delay.ToMilliseconds()
    message = error.details() or "the call failed without a reason"
    return Refused(code, message, retryable=retryable, retry_after_ms=retry_after_ms)


def error_from_entry(error: Error) -> Refused:
    """An `Error` of the contract as an exception."""
    return Refused(error.code, error.message, retryable=error.retryable, retry_after_ms=error.retry_after_ms)


def _details(error: grpc.aio.AioRpcError) -> list[Any]:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return list(Status.FromString(value).details)
    return []
