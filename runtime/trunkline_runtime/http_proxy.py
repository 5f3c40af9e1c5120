"""Use of the environment's HTTP proxy for gRPC channels: only if asked for."""

from __future__ import annotations

import os

#: Variables in which gRPC looks for a proxy, in this order.
_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")


def channel_option(use_proxy: bool) -> tuple[str, int]:
    """The channel option that makes gRPC use, or ignore, the proxy that the environment names."""
    return ("grpc.enable_http_proxy", int(use_proxy))


def describe(use_proxy: bool) -> str:
    """The part of an error text that names the proxy; empty if the environment names none.

    Names the variable only, as its value may hold a password.
    """
    variable = next((name for name in _VARIABLES if os.environ.get(name)), "")
    if not variable:
        return ""
    if use_proxy:
        return f" (through the proxy in {variable}, as TRUNKLINE_ROUTER_PROXY is set)"
    return f" (not through the proxy in {variable}; TRUNKLINE_ROUTER_PROXY=true uses it)"
