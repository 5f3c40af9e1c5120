"""Of connections that supersede each other the newest stays, on whatever edge."""

from __future__ import annotations

from typing import Any

import pytest

from tests.router.core.harness.client import Client
from tests.router.core.harness.router import ALICE, ROOM, Router


def connected(router: Router, at: int = 0, **options: Any) -> Client:
    return router.connected(**{"home": ROOM, "user": "qq@a", "supersedes_at": at} | options)


@pytest.mark.parametrize("edge", ["e1", "e2"])
def test_a_new_connection_closes_the_one_before(edge: str) -> None:
    router = Router()
    first = connected(router, 2)
    second = connected(router, 1, edge=edge)
    router.run()
    assert (first.close_reason, second.state) == ("SUPERSEDED", "open")
    router.broadcast(ROOM, "hello")
    router.run()
    assert (first.texts, second.texts) == ([], ["hello"])
    third = connected(router)
    router.run()
    assert (second.close_reason, third.state) == ("SUPERSEDED", "open")


@pytest.mark.parametrize(
    "other", [{"user": "wx@a"}, {"home": ALICE}, {"supersedes_at": None}, {"holder": "ann"}]
)
def test_a_connection_of_another_address_or_user_or_without_the_wish_stays(other: dict[str, Any]) -> None:
    router = Router()
    first = connected(router)
    second = connected(router, **other)
    router.run()
    assert (first.state, second.state) == ("open", "open")


def test_a_connection_that_left_is_not_closed_again() -> None:
    router = Router()
    first = connected(router)
    router.close(first)
    router.run()
    second = connected(router)
    router.run()
    assert (first.close_reason, second.state) == ("", "open")


@pytest.mark.parametrize("order", [["e1", "e2"], ["e2", "e1"]])
def test_of_restored_connections_the_one_opened_last_stays(order: list[str]) -> None:
    router = Router()
    first = connected(router, 1)
    router.break_link("e1")
    second = connected(router, 2, edge="e2")
    router.restart()
    for edge in order:
        router.link(edge)
    router.run()
    assert (first.close_reason, second.state) == ("SUPERSEDED", "open")
    assert len(router.connections_of("t")) == 1
