"""When the router is held back, and who is closed meanwhile."""

from __future__ import annotations

from trunkline_edge.core.congestion import Congestion
from trunkline_edge.core.connection import Connection

from tests.edge.core.core_harness import JSON


def clients(count: int) -> list[Connection]:
    return [Connection(number, None, JSON, b"", 0) for number in range(1, count + 1)]


def test_clients_are_congested_only_together() -> None:
    congestion = Congestion(budget_bytes=100, stall_s=2)
    first, second = clients(2)
    congestion.report(first, 60)
    congestion.report(first, 70)
    assert not congestion.is_congested
    congestion.report(second, 40)
    assert congestion.is_congested
    assert congestion.buffered_bytes == 110
    congestion.report(first, 0)
    assert (congestion.is_congested, congestion.lagging) == (False, [second])


def test_one_client_within_its_own_bound_never_congests() -> None:
    congestion = Congestion(budget_bytes=64 << 20, stall_s=2)
    [slow] = clients(1)
    congestion.report(slow, 2 << 20)
    assert not congestion.is_congested


def test_whoever_is_gone_takes_its_bytes_along() -> None:
    congestion = Congestion(budget_bytes=100, stall_s=2)
    [client] = clients(1)
    congestion.report(client, 200)
    congestion.gone(client)
    congestion.gone(client)
    assert (congestion.buffered_bytes, congestion.lagging, congestion.stalled(9)) == (0, [], [])


def test_who_takes_nothing_for_too_long_is_found_and_who_takes_a_little_is_not() -> None:
    congestion = Congestion(budget_bytes=100, stall_s=2)
    stalled, slow = clients(2)
    congestion.report(stalled, 100)
    for now in range(5):
        congestion.report(slow, 100 - now)
        assert congestion.stalled(now) == ([stalled] if now >= 2 else [])


def test_the_next_congestion_starts_to_count_anew() -> None:
    congestion = Congestion(budget_bytes=100, stall_s=2)
    [client] = clients(1)
    congestion.report(client, 200)
    congestion.stalled(0)
    congestion.eased()
    assert congestion.stalled(10) == []
    assert congestion.stalled(12) == [client]
