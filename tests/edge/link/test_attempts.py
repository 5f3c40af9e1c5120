"""Order and pace of attempts to link."""

from __future__ import annotations

import pytest
from trunkline_edge.link.attempts import LAST_BACKOFF_S, STANDBY_BACKOFF_S, LinkAttempts
from trunkline_runtime.router_addresses import RouterAddresses


def attempts_at(text: str) -> LinkAttempts:
    """Attempts with the longest pauses that chance allows."""
    return LinkAttempts(RouterAddresses(text), lambda: 1.0)


def test_a_pass_tries_each_router_once_without_a_pause() -> None:
    attempts = attempts_at("a:1,b:1,c:1")
    tried = [(attempts.router, attempts.fail() > 0) for _ in range(6)]
    assert tried == [("a:1", False), ("b:1", False), ("c:1", True)] * 2


@pytest.mark.parametrize(
    ("standbys", "cap_s"), [((False, False), LAST_BACKOFF_S), ((False, True), STANDBY_BACKOFF_S)]
)
def test_pauses_double_up_to_a_cap_that_is_lower_while_a_standby_answers(
    standbys: tuple[bool, bool], cap_s: float
) -> None:
    attempts = attempts_at("a:1,b:1")
    pauses = [attempts.fail(may_be_standby=standbys[n % 2]) for n in range(20)]
    assert pauses[1::2][:4] == [0.1, 0.2, 0.4, 0.8]
    assert pauses[-1] == max(pauses) == cap_s
    assert set(pauses[::2]) == {0.0}


def test_pauses_are_short_again_once_a_standby_answers() -> None:
    attempts = attempts_at("a:1")
    for _ in range(10):
        attempts.fail()
    assert attempts.fail(may_be_standby=True) == STANDBY_BACKOFF_S


def test_the_next_router_is_tried_at_once_when_the_link_breaks() -> None:
    attempts = attempts_at("a:1,b:1")
    attempts.fail()
    assert attempts.router == "b:1"
    attempts.link_was_up(3600)
    assert (attempts.fail(), attempts.router) == (0.0, "a:1")


def test_routers_that_accept_links_and_break_them_are_not_tried_without_a_pause() -> None:
    attempts = attempts_at("a:1,b:1")
    pauses = []
    for _ in range(6):
        attempts.link_was_up(0.01)
        pauses.append(attempts.fail())
    assert pauses == [0.0, 0.1] * 3


def test_one_router_is_tried_again_after_a_pause_when_the_link_breaks() -> None:
    attempts = attempts_at("a:1")
    for _ in range(10):
        attempts.fail()
    attempts.link_was_up(3600)
    assert (attempts.fail(), attempts.router) == (0.1, "a:1")


def test_the_owner_is_tried_next() -> None:
    attempts = attempts_at("a:1,b:1,c:1")
    attempts.prefer("c:1")
    assert attempts.router == "c:1"
    attempts.fail()
    assert attempts.router == "a:1"
