"""Credentials that backends and workers present to a router."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path
from typing import TypedDict

import grpc


class RouterCredentials(TypedDict):
    """Keyword arguments of `Backend` and `Worker` that authenticate them and set up their channel."""

    credentials: grpc.ChannelCredentials | None
    api_key: str
    use_proxy: bool


def load_credentials(
    api_key: str = "", ca: str | PathLike[str] = "", tls: bool = False, use_proxy: bool = False
) -> RouterCredentials:
    """Loads what a router asks of its callers: `Backend(router, **load_credentials(…))`.

    Args:
        api_key: An API key of the tenant; empty sends none.
        ca: PEM file of the certificate authorities to trust; turns TLS on. Empty trusts gRPC's own.
        tls: Turns TLS on without a file.
        use_proxy: Connects through the proxy in grpc_proxy, https_proxy or http_proxy, which is ignored
            otherwise.

    Returns:
        Keyword arguments for `Backend` and `Worker`.

    Raises:
        OSError: `ca` cannot be read.
    """
    roots = Path(ca).read_bytes() if ca else None
    credentials = grpc.ssl_channel_credentials(roots) if tls or ca else None
    return RouterCredentials(credentials=credentials, api_key=api_key, use_proxy=use_proxy)


def load_credentials_from_environment() -> RouterCredentials:
    """Loads credentials as TRUNKLINE_API_KEY, _CA, _TLS and _ROUTER_PROXY set them.

    Returns:
        Keyword arguments for `Backend` and `Worker`; see `load_credentials`.

    Raises:
        OSError: The file that TRUNKLINE_CA names cannot be read.
    """
    env = os.environ.get
    return load_credentials(
        env("TRUNKLINE_API_KEY", ""),
        env("TRUNKLINE_CA", ""),
        tls=_flag("TRUNKLINE_TLS"),
        use_proxy=_flag("TRUNKLINE_ROUTER_PROXY"),
    )


def _flag(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")
