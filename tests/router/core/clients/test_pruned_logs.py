"""Going on from before what a log has kept."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from trunkline_router.core.clients import subscribing
from trunkline_router.core.directory.recovery import Catchup
from trunkline_router.core.values.log_records import Entry, EntryKind, HistoryLimits, Page
from trunkline_router.core.values.topics import EMPTY, Position, TopicKey

from tests.router.core.harness.router import ALICE, ROOM, Router

#: As in a log in memory, where nothing has a time.
ALL_OLD = HistoryLimits(max_age_ms=1)


def said(router: Router, key: TopicKey, *texts: str) -> None:
    """Commit messages."""
    for text in texts:
        router.broadcast(key, text)
    router.settle()


def prune(router: Router, limits: HistoryLimits) -> None:
    """Erase beginnings of the tenant's logs."""
    cursor = None
    while (cursor := router.log.prune("t", limits, cursor, 1000).cursor) is not None:
        pass


def message(seq: int) -> Entry:
    """An entry."""
    return Entry(seq, EntryKind.MESSAGE, b"")


@pytest.mark.parametrize("after", [EMPTY, Position("e", 1), Position("e", 3)])
@pytest.mark.parametrize("kept", [2, 1, 0])
@pytest.mark.parametrize("live", [False, True])
def test_what_is_gone_was_not_recovered(after: Position, kept: int, live: bool) -> None:
    catchup = Catchup(after)
    told = Position("e", 6)
    if live:
        catchup.saw(Position("e", 7), EntryKind.MESSAGE, b"")
        told = Position("e", 7)
    catchup.read(Page([message(n) for n in range(7 - kept, 7)], False, Position("e", 6)), told)
    assert catchup.missed is None


def test_all_that_is_there_from_a_position_on_was_recovered() -> None:
    catchup = Catchup(Position("e", 4))
    catchup.read(Page([message(5), message(6)], False, Position("e", 6)), Position("e", 6))
    assert catchup.missed == [message(5), message(6)]
    catchup = Catchup(Position("e", 6))
    catchup.read(Page([], False, Position("e", 6)), Position("e", 6))
    assert catchup.missed == []


@pytest.mark.parametrize("limits", [HistoryLimits(max_messages=2), ALL_OLD])
def test_whoever_resumes_from_before_what_is_kept_is_not_recovered(limits: HistoryLimits) -> None:
    router = Router()
    said(router, ALICE, "1", "2", "3", "4")
    prune(router, limits)
    client = router.connected(ALICE, resume={ALICE: Position("e1", 1)})
    assert not client.frames[0].connected.recovered
    assert client.texts == []
    said(router, ALICE, "5")
    assert client.texts == ["5"]


def test_whoever_resumes_where_the_rest_is_kept_is_recovered() -> None:
    router = Router()
    said(router, ALICE, "1", "2", "3", "4")
    prune(router, HistoryLimits(max_messages=2))
    client = router.connected(ALICE, resume={ALICE: Position("e1", 2)})
    assert client.frames[0].connected.recovered
    assert client.texts == ["3", "4"]


@pytest.mark.parametrize("limits", [HistoryLimits(max_messages=2), ALL_OLD])
def test_those_on_a_link_that_was_down_too_long_are_closed(limits: HistoryLimits) -> None:
    router = Router()
    client = router.connected(ALICE)
    said(router, ALICE, "1")
    router.break_link()
    said(router, ALICE, "2", "3", "4")
    prune(router, limits)
    router.link("e1")
    router.settle()
    assert client.state == "closed"


@pytest.mark.parametrize("most", [1, 1000])
@pytest.mark.parametrize("limits", [HistoryLimits(max_messages=2), ALL_OLD])
def test_a_user_who_goes_on_from_what_was_delivered_gets_what_is_kept(
    limits: HistoryLimits, most: int
) -> None:
    router = Router()
    said(router, ALICE, "1", "2", "3", "4")
    said(router, ROOM, "a")
    prune(router, limits)
    with patch.object(subscribing, "RECOVERY_MAX_MESSAGES", most):
        client = router.open(ALICE, user="x", delivered=True)
        router.settle()
    kept = ["3", "4"] if limits.max_messages else []
    assert client.texts == kept
    starts = {e.address.conversation.id: e.position.seq for e in client.frames[0].connected.positions}
    assert starts["alice"] == 4 - len(kept)
    said(router, ALICE, "5")
    assert client.texts == [*kept, "5"]
