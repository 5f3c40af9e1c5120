"""Resuming from before the first entry that a log still has."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from trunkline_router.core.clients import subscribing
from trunkline_router.core.directory.recovery import Catchup
from trunkline_router.core.values.log_records import Entry, EntryKind, HistoryLimits, Page
from trunkline_router.core.values.topics import EMPTY, Position, TopicKey

from tests.router.core.harness.router import ALICE, ROOM, Router

#: As in the log in memory, which records no times.
ALL_OLD = HistoryLimits(max_age_ms=1)


def publish(router: Router, key: TopicKey, *texts: str) -> None:
    """Commit messages to a topic."""
    for text in texts:
        router.broadcast(key, text)
    router.run()


def prune(router: Router, limits: HistoryLimits) -> None:
    """Prune the beginnings of the tenant's logs."""
    cursor = None
    while (cursor := router.log.prune("t", limits, cursor, 1000).cursor) is not None:
        pass


def message(seq: int) -> Entry:
    """Return an entry."""
    return Entry(seq, EntryKind.MESSAGE, b"")


@pytest.mark.parametrize("after", [EMPTY, Position("e", 1), Position("e", 3)])
@pytest.mark.parametrize("kept", [2, 1, 0])
@pytest.mark.parametrize("live", [False, True])
def test_a_gap_at_the_start_is_no_recovery(after: Position, kept: int, live: bool) -> None:
    catchup = Catchup(after)
    head = Position("e", 6)
    if live:
        catchup.add_live(Position("e", 7), EntryKind.MESSAGE, b"")
        head = Position("e", 7)
    catchup.merge(Page([message(n) for n in range(7 - kept, 7)], False, Position("e", 6)), head)
    assert catchup.missed is None


def test_everything_from_a_position_on_is_a_recovery() -> None:
    catchup = Catchup(Position("e", 4))
    catchup.merge(Page([message(5), message(6)], False, Position("e", 6)), Position("e", 6))
    assert catchup.missed == [message(5), message(6)]
    catchup = Catchup(Position("e", 6))
    catchup.merge(Page([], False, Position("e", 6)), Position("e", 6))
    assert catchup.missed == []


@pytest.mark.parametrize("limits", [HistoryLimits(max_messages=2), ALL_OLD])
def test_a_client_that_resumes_before_the_first_entry_is_not_recovered(limits: HistoryLimits) -> None:
    router = Router()
    publish(router, ALICE, "1", "2", "3", "4")
    prune(router, limits)
    client = router.connected(ALICE, resume={ALICE: Position("e1", 1)})
    assert not client.frames[0].connected.recovered
    assert client.texts == []
    publish(router, ALICE, "5")
    assert client.texts == ["5"]


def test_a_client_whose_missed_entries_are_kept_is_recovered() -> None:
    router = Router()
    publish(router, ALICE, "1", "2", "3", "4")
    prune(router, HistoryLimits(max_messages=2))
    client = router.connected(ALICE, resume={ALICE: Position("e1", 2)})
    assert client.frames[0].connected.recovered
    assert client.texts == ["3", "4"]


@pytest.mark.parametrize("limits", [HistoryLimits(max_messages=2), ALL_OLD])
def test_clients_of_a_link_that_was_down_too_long_are_closed(limits: HistoryLimits) -> None:
    router = Router()
    client = router.connected(ALICE)
    publish(router, ALICE, "1")
    router.break_link()
    publish(router, ALICE, "2", "3", "4")
    prune(router, limits)
    router.link("e1")
    router.run()
    assert client.state == "closed"


@pytest.mark.parametrize("most", [1, 1000])
@pytest.mark.parametrize("limits", [HistoryLimits(max_messages=2), ALL_OLD])
def test_a_user_who_resumes_after_deliveries_gets_what_is_kept(limits: HistoryLimits, most: int) -> None:
    router = Router()
    publish(router, ALICE, "1", "2", "3", "4")
    publish(router, ROOM, "a")
    prune(router, limits)
    with patch.object(subscribing, "RECOVERY_MAX_MESSAGES", most):
        client = router.open(ALICE, user="x", delivered=True)
        router.run()
    kept = ["3", "4"] if limits.max_messages else []
    assert client.texts == kept
    starts = {e.address.conversation.id: e.position.seq for e in client.frames[0].connected.positions}
    assert starts["alice"] == 4 - len(kept)
    publish(router, ALICE, "5")
    assert client.texts == [*kept, "5"]
