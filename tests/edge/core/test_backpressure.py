"""Backpressure: slow clients are closed, and the router gets no credit while all together are too slow."""

from __future__ import annotations

import pytest
from trunkline.v1 import catalogue
from trunkline_edge.core.connection import Connection, ConnectionState
from trunkline_edge.core.edge import EdgeCore
from trunkline_edge.core.framing import websocket_frame

from tests.edge.core.core_harness import closings, deliver, delta, heard, linked_core, open_all, streaming

OUTBOX = 1000
TOTAL = 5000


@pytest.fixture
def core() -> EdgeCore:
    return linked_core(outbox_bytes=OUTBOX, outbox_total_bytes=TOTAL, stall_s=2)


def backlogged(core: EdgeCore, count: int = 1) -> list[Connection]:
    """Clients whose sockets did not take everything."""
    clients = open_all(core, "abcdefgh"[:count])
    for client in clients:
        core.backpressure.write_buffered(client)
    return clients


def write(core: EdgeCore, client: Connection, buffered: int, size: int) -> bool:
    """Write some bytes to a client whose socket buffers others; False if it was closed instead."""
    client.pending.append(websocket_frame(b"x" * (size - (4 if size > 127 else 2)), binary=True))
    if core.take_pending(client, buffered) is None:
        return False
    core.written(client, buffered + size, size)
    return True


def buffer(core: EdgeCore, sizes: dict[Connection, int]) -> None:
    """Measure all backlogs."""
    core.backpressure.measure(lambda connection: sizes[connection])


# One client


def test_a_client_without_backlog_is_written_any_amount(core: EdgeCore) -> None:
    [client] = open_all(core, "a")
    client.pending.append(b"x" * 10 * OUTBOX)
    data = core.take_pending(client, buffered=0)
    assert data is not None
    assert len(data) == 10 * OUTBOX


def test_a_client_is_closed_by_the_write_that_exceeds_its_bound(core: EdgeCore) -> None:
    [client] = backlogged(core)
    assert write(core, client, buffered=600, size=400)
    assert core.backpressure.total_bytes == 1000
    assert not write(core, client, buffered=1000, size=2)
    assert client.state is ConnectionState.CLOSING
    assert [closing.reason for closing in closings(core, client)] == ["SLOW_CONSUMER"]
    assert client in core.dirty
    assert heard(client) == ["closing SLOW_CONSUMER"]
    assert (core.counts.slow_consumers, core.counts.closed_by) == (1, {"SLOW_CONSUMER": 1})
    assert (core.backpressure.total_bytes, core.backpressure.backlogged) == (0, [])


def test_what_a_slow_client_is_no_longer_written_is_counted_as_dropped(core: EdgeCore) -> None:
    [client] = backlogged(core)
    for number in range(3):
        core.client_frames.received(client, b'{"type":"ping","id":"p%d"}' % number)
    deliveries = core.counts.deliveries
    assert core.take_pending(client, buffered=OUTBOX) is None
    # Three pongs did not get to the socket, the closing frame will.
    assert (core.counts.deliveries, core.counts.dropped) == (deliveries - 3 + 1, 3)


def test_the_bound_holds_for_what_gathers_beside_what_is_buffered(core: EdgeCore) -> None:
    [slow, fast] = streaming(core, "ab", rollup_ms=0)
    core.backpressure.write_buffered(slow)
    for index in range(3):
        deliver(core, delta(1, index, "x" * 300))
        assert core.take_pending(slow, buffered=0) == b""
    assert core.backpressure.total_bytes >= 900
    deliver(core, delta(1, 3, "x" * 300))
    assert core.take_pending(slow, buffered=0) is None
    assert core.fanout.backlog_bytes(slow) == 0
    assert fast.state is ConnectionState.OPEN


@pytest.mark.parametrize(("size", "is_closed"), [(500, True), (501, False)])
def test_a_piece_of_more_than_half_the_bound_is_exempt(core: EdgeCore, size: int, is_closed: bool) -> None:
    [client] = backlogged(core)
    assert write(core, client, buffered=500, size=size)
    assert write(core, client, buffered=500 + size, size=2) is not is_closed


def test_only_the_largest_piece_is_exempt_and_only_until_it_is_taken(core: EdgeCore) -> None:
    [client] = backlogged(core)
    assert write(core, client, buffered=0, size=5000)
    assert client.oversize_bytes == 5000
    assert write(core, client, buffered=4000, size=600)
    assert client.oversize_bytes == 5000
    core.backpressure.caught_up(client)
    assert (client.oversize_bytes, client.has_backlog, core.backpressure.total_bytes) == (0, False, 0)
    core.backpressure.write_buffered(client)
    assert not write(core, client, buffered=900, size=101)


def test_a_client_that_is_being_closed_is_written_its_last_frames_whatever_it_buffers(core: EdgeCore) -> None:
    [client] = backlogged(core)
    core.sessions.close(client, catalogue.RESTARTING.refused())
    assert core.take_pending(client, buffered=10 * OUTBOX)
    assert core.counts.slow_consumers == 0


# All clients


def test_clients_are_congested_only_together(core: EdgeCore) -> None:
    first, second = backlogged(core, 2)
    core.backpressure.written(first, buffered=3000, size=0)
    core.backpressure.written(first, buffered=3500, size=0)
    assert not core.backpressure.is_congested
    core.backpressure.written(second, buffered=2000, size=0)
    assert core.backpressure.is_congested
    assert core.backpressure.total_bytes == 5500
    buffer(core, {first: 0, second: 2000})
    assert (core.backpressure.is_congested, core.backpressure.backlogged) == (False, [second])


def test_whoever_is_gone_takes_its_bytes_along(core: EdgeCore) -> None:
    [client] = backlogged(core)
    core.backpressure.written(client, buffered=9000, size=0)
    core.gone(client)
    core.gone(client)
    core.backpressure.close_stalled(9)
    assert (core.backpressure.total_bytes, core.backpressure.backlogged) == (0, [])
    assert core.counts.slow_consumers == 0


def test_a_client_that_takes_nothing_for_too_long_is_closed_and_one_that_takes_a_little_is_not(
    core: EdgeCore,
) -> None:
    stalled, slow = backlogged(core, 2)
    core.backpressure.written(stalled, buffered=5000, size=0)
    core.backpressure.written(slow, buffered=9000, size=0)
    for now in range(4):
        buffer(core, {stalled: 5000, slow: 9000 - now})
        core.backpressure.close_stalled(now)
        assert (stalled.state is ConnectionState.CLOSING) == (now >= 2)
    assert slow.state is ConnectionState.OPEN
    assert core.counts.slow_consumers == 1


def test_nobody_is_closed_as_stalled_without_congestion(core: EdgeCore) -> None:
    [client] = backlogged(core)
    core.backpressure.written(client, buffered=5000, size=0)
    for now in range(9):
        core.backpressure.close_stalled(now)
    assert client.state is ConnectionState.OPEN


def test_the_next_congestion_starts_to_count_anew(core: EdgeCore) -> None:
    [client] = backlogged(core)
    core.backpressure.written(client, buffered=6000, size=0)
    core.backpressure.close_stalled(0)
    core.backpressure.written(client, buffered=5000, size=0)
    core.backpressure.close_stalled(1)
    core.backpressure.written(client, buffered=6000, size=0)
    core.backpressure.close_stalled(10)
    assert client.state is ConnectionState.OPEN
    core.backpressure.close_stalled(12)
    assert client.state is ConnectionState.CLOSING
