"""Tenants with limits, and clients and backends that reach them."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import grpc
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from trunkline.v1.tenant_pb2 import OPENNESS_LOOPBACK

from tests.e2e.fleet import Fleet
from tests.e2e.grpc_backend import TIMEOUT_S, GrpcBackend
from tests.e2e.operator_client import OperatorClient, wait_until_known
from tests.e2e.polling import wait_until
from tests.e2e.recording_client import RecordingClient
from tests.support.patience import patient
from tests.validators.history import History

if TYPE_CHECKING:
    from tests.support.processes import Process

_numbers = itertools.count(1)
#: Number of concurrent calls, or frames in a row, that exceeds the limits even on a slow machine.
MANY = 20
MIB = 1 << 20


class LimitedTenants:
    """Creates tenants with given limits, open to this machine."""

    def __init__(self, fleet: Fleet, operator: OperatorClient) -> None:
        self._fleet = fleet
        self._operator = operator

    def create(self, **limits: int) -> str:
        """Create a tenant with these limits; return its name once all edges know it."""
        tenant = f"limited-{next(_numbers)}"
        self._operator.create(tenant, open_to=OPENNESS_LOOPBACK, limits=limits)
        wait_until_known(tenant, *self._fleet.edges)
        return tenant


def client(edge: Process, tenant: str, user: str = "ann", **options: Any) -> RecordingClient:
    return RecordingClient(History(), f"{tenant}/{user}", edge.address, **options)


def path_of(tenant: str, user: str = "ann", what: str = "connect") -> str:
    return f"/v1/{what}?tenant={tenant}&agent=echo&platform=web&conversation=group:team&user={user}"


async def rejected_after_upgrade(edge: Process, tenant: str, user: str = "ann") -> dict[str, Any]:
    """Connect a client that must be rejected after the upgrade; return its `closing` frame."""
    recorder = client(edge, tenant, user)
    closing = await recorder.connect()
    await wait_until(lambda: recorder.closed, "the connection is closed")
    assert recorder.closed is not None
    assert (closing["type"], closing["code"]) == ("closing", recorder.closed.code)
    return closing


async def can_send_again(recorder: RecordingClient) -> bool:
    """Return whether a message is accepted within 5 s."""
    deadline = time.monotonic() + patient(5)
    while time.monotonic() < deadline:
        ident = await recorder.say("again")
        answer = await answer_to(recorder, ident)
        if answer["type"] == "ack":
            return True
        assert answer["code"] == "RATE_LIMITED"
    return False


async def answer_to(recorder: RecordingClient, ident: str) -> dict[str, Any]:
    """Wait for the response to a frame with this id."""
    await wait_until(lambda: any(f.get("id") == ident for f in recorder.inbox), f"{ident} is answered")
    return next(f for f in recorder.inbox if f.get("id") == ident)


def rejections_of(backend: GrpcBackend, rpc: Any, request: Any) -> list[grpc.RpcError]:
    """Make MANY concurrent calls; return the errors of the rejected ones."""
    calls = [rpc.future(request, timeout=TIMEOUT_S) for _ in range(MANY)]
    return [error for call in calls if (error := call.exception()) is not None]


def retry_after_s(error: grpc.RpcError) -> float:
    """Return the retry delay of an error; 0 if it has none."""
    for name, value in error.trailing_metadata() or ():  # type: ignore[attr-defined]
        if name == "grpc-status-details-bin":
            for detail in Status.FromString(value).details:
                info = RetryInfo()
                if detail.Unpack(info):
                    return info.retry_delay.ToTimedelta().total_seconds()
    return 0
