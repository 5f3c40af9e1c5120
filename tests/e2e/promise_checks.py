"""How a test with a history ends: everybody has everything, and every promise was kept."""

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


async def wait_until_caught_up(fleet: Fleet, chatters: Sequence[RecordingClient]) -> None:
    """Wait until everything said is acked and everybody has come to the end of their home's log."""
    await wait_until(lambda: not any(chatter.unacked for chatter in chatters), "everything said is acked")
    with GrpcBackend(fleet.router.address) as backend:
        ends = {home: len(backend.messages(home)) for home in {chatter.home for chatter in chatters}}
    await wait_until(
        lambda: all(chatter.seq() >= ends[chatter.home] for chatter in chatters),
        f"everybody comes to {ends}",
    )


def assert_promises_kept(fleet: Fleet, history: History, open_ones: Sequence[RecordingClient]) -> None:
    """Read the logs of the chatters' homes and hold the history to every promise."""
    history.open_lives |= {chatter.life for chatter in open_ones}
    with GrpcBackend(fleet.router.address, history) as backend:
        backend.read_logs(*{chatter.home for chatter in open_ones})
    assert_promises(history)
