"""How a test with a history ends: everybody has everything, and every promise was kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.e2e.backends import Backend
from tests.e2e.waiting import until
from tests.validators.promises import assert_promises

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.e2e.chatter import Chatter
    from tests.e2e.fleet import Fleet
    from tests.validators.history import History


async def all_caught_up(fleet: Fleet, chatters: Sequence[Chatter]) -> None:
    """Wait until everything said is acked and everybody has come to the end of their home's log."""
    await until(lambda: not any(chatter.unacked for chatter in chatters), "everything said is acked")
    with Backend(fleet.router.address) as backend:
        ends = {home: len(backend.messages(home)) for home in {chatter.home for chatter in chatters}}
    await until(
        lambda: all(chatter.seq() >= ends[chatter.home] for chatter in chatters),
        f"everybody comes to {ends}",
    )


def assert_promises_kept(fleet: Fleet, history: History, open_ones: Sequence[Chatter]) -> None:
    """Read the logs of the chatters' homes and hold the history to every promise."""
    history.open_lives |= {chatter.life for chatter in open_ones}
    with Backend(fleet.router.address, history) as backend:
        backend.read_logs(*{chatter.home for chatter in open_ones})
    assert_promises(history)
