"""Uplink batches: their size, and the credit they cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from trunkline_edge.core.uplink import ENTRY_BYTES, Uplink
from trunkline_runtime.credited_batch_queue import MAX_BATCH_BYTES

from tests.edge.core.core_harness import taken


def filled(sizes: list[int]) -> Uplink:
    uplink = Uplink(max_bytes=10 << 20, window=4)
    uplink.restart(is_up=True)
    for number, size in enumerate(sizes):
        uplink.add(size).closed.connection = number
    return uplink


@given(st.lists(st.sampled_from([0, 100, 300_000, 600_000, MAX_BATCH_BYTES, 3 << 20]), max_size=20))
def test_entries_leave_in_order_in_batches_of_at_most_one_mib_unless_one_alone_is_larger(
    sizes: list[int],
) -> None:
    uplink = filled(sizes)
    assert uplink.waiting_bytes == sum(size + ENTRY_BYTES for size in sizes)
    batches = [[entry.closed.connection for entry in batch.entries] for batch in taken(uplink)]
    assert [number for batch in batches for number in batch] == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) == 1 or sum(sizes[n] + ENTRY_BYTES for n in batch) <= MAX_BATCH_BYTES
    assert uplink.waiting_bytes == 0


def test_a_batch_costs_one_credit_and_none_leaves_without() -> None:
    uplink = filled([MAX_BATCH_BYTES] * 3)
    assert not uplink.is_ready
    assert uplink.take() is None
    uplink.credit = 2
    assert uplink.take() is not None
    assert uplink.take() is not None
    assert uplink.take() is None
    assert (uplink.credit, uplink.waiting_bytes) == (0, MAX_BATCH_BYTES + ENTRY_BYTES)


def test_credit_owed_leaves_with_the_next_batch() -> None:
    uplink = filled([0])
    uplink.credit = 1
    uplink.return_credit(urgent=False)
    batch = uplink.take()
    assert batch is not None
    assert (batch.credit, len(batch.entries)) == (1, 1)
    assert not uplink.is_ready


def test_credit_leaves_without_entries_once_half_of_the_window_is_owed() -> None:
    uplink = Uplink(max_bytes=1000, window=4)
    uplink.return_credit(urgent=False)
    assert not uplink.is_ready
    assert uplink.take() is None
    uplink.return_credit(urgent=False)
    assert uplink.is_ready
    batch = uplink.take()
    assert batch is not None
    assert (batch.credit, len(batch.entries)) == (2, 0)
    assert not uplink.is_ready


def test_credit_that_is_urgent_leaves_even_where_entries_must_wait() -> None:
    uplink = filled([0])
    uplink.return_credit(urgent=True)
    batch = uplink.take()
    assert batch is not None
    assert (batch.credit, len(batch.entries)) == (1, 0)
    uplink.credit = 1
    batch = uplink.take()
    assert batch is not None
    assert len(batch.entries) == 1


def test_a_new_link_begins_with_nothing() -> None:
    uplink = filled([100, MAX_BATCH_BYTES])
    uplink.credit = uplink.credit_owed = 5
    uplink.restart(is_up=True)
    assert (uplink.waiting_bytes, uplink.credit, uplink.credit_owed, uplink.is_ready) == (0, 0, 0, False)


def test_it_is_full_beyond_its_bound() -> None:
    uplink = Uplink(max_bytes=1000, window=4)
    uplink.add(1000 - ENTRY_BYTES)
    assert not uplink.is_full
    uplink.add()
    assert uplink.is_full
