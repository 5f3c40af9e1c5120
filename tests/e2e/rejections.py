"""Rejected handshakes and requests of clients, and the counters of an edge."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.request import urlopen

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.e2e.fleet import metric
from tests.e2e.grpc_backend import TIMEOUT_S
from tests.support.patience import patient

if TYPE_CHECKING:
    from tests.support.processes import Process


class Rejection(NamedTuple):
    """Error response with a google.rpc.Status in JSON."""

    status: int
    code: str
    #: 0 if the error is not retryable.
    retry_after_s: float
    text: str
    headers: Any


def parse_rejection(status: int, headers: Any, body: dict[str, Any]) -> Rejection:
    """Parse an error response."""
    assert headers["content-type"] == "application/json"
    [code] = [detail["reason"] for detail in body["details"] if detail["@type"].endswith("ErrorInfo")]
    delays = [detail["retryDelay"] for detail in body["details"] if detail["@type"].endswith("RetryInfo")]
    return Rejection(status, code, float(delays[0].rstrip("s")) if delays else 0, body["message"], headers)


async def rejected_handshake(edge: Process, path: str, **options: Any) -> Rejection:
    """Connect a client that must be rejected before the upgrade; return the error response."""
    try:
        async with connect(f"ws://{edge.address}{path}", compression=None, **options):
            raise AssertionError(f"{path} was accepted")
    except InvalidStatus as error:
        response = error.response
        return parse_rejection(response.status_code, response.headers, json.loads(response.body or b""))


async def rejected_stream(edge: Process, path: str, **headers: str) -> Rejection:
    """Request an event stream that must be rejected; return the error response."""
    async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as http:
        response = await http.get(f"http://{edge.address}{path}", headers=headers)
    return parse_rejection(response.status_code, response.headers, response.json())


def rejection_count(edge: Process, code: str) -> int:
    """Return the number of rejections that an edge has counted for an error code."""
    return int(metric(edge, f'trunkline_edge_refused_total{{code="{code}"}}', absent=0))


def metrics_of(edge: Process) -> str:
    """Return all metrics of an edge."""
    with urlopen(f"http://{edge.address}/metrics", timeout=patient(10)) as response:
        text: str = response.read().decode()
    return text
