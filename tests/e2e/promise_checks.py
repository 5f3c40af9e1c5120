"""Final checks of a test with a history: all clients are up to date and every promise was kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.e2e.grpc_backend import GrpcBackend
from tests.e2e.polling import wait_until
from tests.validators.promises import assert_promises

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.e2e.fleet import Fleet
    from tests.e2e.recording_client import RecordingClient
    from tests.validators.history import History


async def wait_until_caught_up(fleet: Fleet, clients: Sequence[RecordingClient]) -> None:
    """Wait until all messages are acked and each client has the whole log of its home topic."""
    await wait_until(lambda: not any(client.unacked for client in clients), "all messages are acked")
    with GrpcBackend(fleet.router.address) as backend:
        ends = {home: len(backend.messages(home)) for home in {client.home for client in clients}}
    await wait_until(
        lambda: all(client.seq() >= ends[client.home] for client in clients),
        f"all clients reach {ends}",
    )


def assert_promises_kept(fleet: Fleet, history: History, connected: Sequence[RecordingClient]) -> None:
    """Read the logs of the clients' home topics and check the history against every promise."""
    history.open_sessions |= {client.session for client in connected}
    with GrpcBackend(fleet.router.address, history) as backend:
        backend.read_logs(*{client.home for client in connected})
    assert_promises(history)
