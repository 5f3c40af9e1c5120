"""The routers of a list, and the waits of streams that go from one to the next: pure."""

from __future__ import annotations

import pytest
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest
from trunkline_client import Backend, Refused, Unreachable, Worker
from trunkline_client.backoff import Backoff
from trunkline_client.publish_queue import PublishQueue
from trunkline_client.router_choice import MAX_ROUTERS, STANDBY_WAIT_S, RouterChoice, StreamRetries

STANDBY = Refused("ROUTER_STANDBY", "standby", retryable=True, retry_after_ms=1000)
ABSENT = Unreachable("a:1", "refused")


def test_routers_are_called_in_turn_from_the_current_one() -> None:
    routers = RouterChoice(" a:1, b:1,[::1]:1 ")
    assert (str(routers), len(routers), routers.current) == ("a:1,b:1,[::1]:1", 3, "a:1")
    routers.leave("a:1")
    assert routers.in_order() == ["b:1", "[::1]:1", "a:1"]
    routers.leave("a:1")
    assert routers.current == "b:1", "another caller has left it already"


def test_one_router_is_a_list_of_one() -> None:
    routers = RouterChoice("dns:///router:1")
    routers.leave("dns:///router:1")
    assert (routers.current, routers.in_order()) == ("dns:///router:1", ["dns:///router:1"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a:1,", "empty address"),
        ("a:1,,b:1", "empty address"),
        ("a:1,b:1,A:1", "names one twice"),
        (",".join(f"r{n}:1" for n in range(MAX_ROUTERS + 1)), "at most 16; this one has 17"),
    ],
)
def test_a_wrong_list_is_refused_when_it_is_given(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Backend(text)
    with pytest.raises(ValueError, match=problem):
        Worker(text, tenant="demo", agents=["echo"])


def retries(text: str, cap_s: float = 5.0) -> StreamRetries:
    """Waits as long as chance allows."""
    return StreamRetries(RouterChoice(text), Backoff(lambda: 1.0, cap_s=cap_s))


def test_a_pass_over_the_routers_has_no_waits() -> None:
    attempts = retries("a:1,b:1,c:1")
    waits = [attempts.wait_s(attempts._routers.current, ABSENT) for _ in range(6)]
    assert waits == [0.0, 0.0, 0.1, 0.0, 0.0, 0.2]
    assert attempts._routers.current == "a:1"


def test_waits_are_short_while_a_standby_answers() -> None:
    attempts = retries("a:1,b:1")
    waits = [attempts.wait_s(attempts._routers.current, error) for error in (ABSENT, STANDBY) * 10]
    assert max(each or 0 for each in waits) == STANDBY_WAIT_S
    assert [attempts.wait_s("a:1", ABSENT), attempts.wait_s("b:1", ABSENT)] == [0.0, 5.0]


def test_one_router_that_is_a_standby_is_tried_again_after_a_wait() -> None:
    attempts = retries("a:1")
    assert [attempts.wait_s("a:1", STANDBY) for _ in range(5)] == [0.1, 0.2, 0.4, 0.8, 1.0]


def test_a_refusal_by_the_owner_goes_to_no_other_router() -> None:
    attempts = retries("a:1,b:1")
    overloaded = Refused("OVERLOADED", "overloaded", retryable=True, retry_after_ms=1000)
    assert attempts.wait_s("a:1", overloaded) == 1.1
    assert attempts._routers.current == "a:1"
    assert attempts.wait_s("a:1", Refused("UNKNOWN_TENANT", "unknown")) is None


def test_requests_of_a_refused_stream_are_written_again_with_and_without_a_key() -> None:
    queue = PublishQueue(10)
    for key in ("a", "", "b"):
        queue.add(BroadcastRequest(idempotency_key=key))
    assert len(queue.next_batch().requests) == 3
    queue.add(BroadcastRequest())
    queue.stream_refused()
    assert not any(queue.may_be_committed(number) for number in (1, 2, 3, 4))
    assert [each.number for each in queue.next_batch().requests] == [1, 2, 3, 4]
    assert queue.stream_lost() == [2, 4]
    queue.next_batch()
    queue.stream_refused()
    assert [queue.may_be_committed(number) for number in (1, 3)] == [True, True]
