"""Settings of routers and edges for links with client certificates."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.support.certificates import tls_env

if TYPE_CHECKING:
    from tests.support.certificates import Certificates
    from tests.support.processes import Process


def router_link_env(ours: Certificates) -> dict[str, str]:
    """Return a router's settings for TLS and a separate link port."""
    links = {"TRUNKLINE_LINK_LISTEN": "127.0.0.1:0", "TRUNKLINE_TLS_CLIENT_CA": str(ours.ca)}
    return tls_env("TLS", ours.router) | links


def edge_link_env(ours: Certificates, links: str) -> dict[str, str]:
    """Return an edge's settings for a router's link port."""
    return {"TRUNKLINE_ROUTER": links, "TRUNKLINE_ROUTER_CA": str(ours.ca)} | tls_env("ROUTER", ours.client)


def link_address(router: Process) -> str:
    """Return the address of a router's link port."""
    lines = [json.loads(line) for line in router.stderr.splitlines()]
    return next(str(line["links"]) for line in lines if line["event"] == "router is ready")
