"""Tenants whose clients authenticate by token, and such clients."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import connect

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.operator_client import OperatorClient, client_auth, wait_until_known
from tests.e2e.polling import wait_until
from tests.e2e.recording_client import RecordingClient
from tests.support.patience import patient
from tests.support.signing import Signer
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.support.processes import Process

TENANT = "acme"
SIGNER = Signer(TENANT)
RSA = Signer(TENANT, "rsa", "RS256")
AUDIENCE = Signer("heard", "k1")
PATH = f"/v1/connect?tenant={TENANT}&agent=echo&platform=web&conversation=group:team"
EVENTS = PATH.replace("connect", "events")


@contextmanager
def token_fleet(data: Path) -> Iterator[Fleet]:
    """Run a router, an edge, and tenants that accept tokens of these signers."""
    with fleet_of(data, TRUNKLINE_TENANTS="demo") as started:
        with OperatorClient(started.router.address, started.operator_key, started.edges) as calling:
            calling.create(TENANT, client_auth=client_auth([SIGNER, RSA], ["opaque"]))
            calling.create("heard", client_auth=client_auth([AUDIENCE], audiences=["chat"], issuer="us"))
        wait_until_known("heard", *started.edges)
        yield started


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def token_client(edge: Process, user: str, token: str, conversation: str = "group:team") -> RecordingClient:
    """Create a client with a token."""
    return RecordingClient(
        History(), f"{TENANT}/{user}", edge.address, conversation, additional_headers=bearer(token)
    )


async def close_of(recorder: RecordingClient) -> tuple[int, str]:
    """Wait until a connection is closed; return code and reason."""
    await wait_until(lambda: recorder.closed, f"{recorder.name} is closed", timeout_s=patient(5))
    assert recorder.closed is not None
    return recorder.closed.code, recorder.closed.reason


async def assert_answered(recorder: RecordingClient) -> None:
    """Check that the router still serves a connection."""
    await recorder.send({"type": "history", "id": "still"})
    await recorder.next("history", id="still")


@asynccontextmanager
async def first_frame(
    edge: Process, path: str, *frames: dict[str, Any], **options: Any
) -> AsyncIterator[tuple[Any, dict[str, Any]]]:
    """Connect, send frames, and yield the socket with the first received frame."""
    async with connect(f"ws://{edge.address}{path}", **options) as ws:
        for frame in frames:
            await ws.send(json.dumps(frame))
        async with asyncio.timeout(patient(10)):
            yield ws, json.loads(await ws.recv())
