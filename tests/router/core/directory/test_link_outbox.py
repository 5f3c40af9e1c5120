"""LinkOutbox: order, batches, bounds and credit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from trunkline_router.core.directory.link_outbox import ENTRY_BYTES, LinkOutbox
from trunkline_runtime.credited_batch_queue import MAX_BATCH_BYTES

WINDOW = 4


def test_nothing_is_written_without_credit() -> None:
    outbox = LinkOutbox(1000, window=WINDOW)
    outbox.add().forget.topic = 1
    assert not outbox.is_ready
    assert outbox.take() is None
    outbox.credit = 1
    assert outbox.is_ready
    batch = outbox.take()
    assert batch is not None
    assert batch.entries[0].forget.topic == 1
    assert (outbox.credit, outbox.waiting_bytes) == (0, 0)
    assert outbox.take() is None


def test_returned_credit_goes_with_the_next_batch_or_in_an_empty_one() -> None:
    outbox = LinkOutbox(1000, window=WINDOW)
    outbox.return_credit(1)
    assert outbox.take() is None, "a batch returns less than half of the window"
    outbox.return_credit(2)
    empty = outbox.take()
    assert empty is not None
    assert (empty.credit, len(empty.entries)) == (3, 0)
    outbox.return_credit(2)
    outbox.credit = 1
    outbox.add()
    batch = outbox.take()
    assert batch is not None
    assert (batch.credit, len(batch.entries)) == (2, 1)
    assert not outbox.is_ready


def test_an_outbox_is_full_above_its_bound_and_has_room_at_half_of_it() -> None:
    outbox = LinkOutbox(1000, window=WINDOW)
    outbox.add(1000 - ENTRY_BYTES)
    assert (outbox.is_full, outbox.has_room) == (False, False)
    outbox.add()
    assert outbox.is_full
    outbox.credit = 1
    outbox.take()
    assert outbox.has_room
    outbox.add(500 - ENTRY_BYTES)
    assert outbox.has_room


def test_a_discarded_outbox_keeps_nothing() -> None:
    outbox = LinkOutbox(100, window=WINDOW)
    outbox.credit = 4
    outbox.return_credit(4)
    for size in (50, MAX_BATCH_BYTES, 50):
        outbox.add(size)
    outbox.discard()
    outbox.add(500).forget.topic = 1
    assert (outbox.waiting_bytes, outbox.is_full, outbox.is_ready) == (0, False, False)
    assert outbox.take() is None


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, MAX_BATCH_BYTES * 3 // 2)),
            st.tuples(st.just("credit"), st.integers(1, 3)),
            st.tuples(st.just("owe"), st.integers(1, 3)),
            st.tuples(st.just("take"), st.just(0)),
        )
    )
)
def test_entries_leave_in_order_in_bounded_batches_of_one_credit_each(
    events: list[tuple[str, int]],
) -> None:
    outbox = LinkOutbox(MAX_BATCH_BYTES * 4, window=WINDOW)
    sizes: list[int] = []
    out: list[int] = []
    granted = written = owed = paid = 0
    for event, number in [*events, ("credit", 100), *[("take", 0)] * (len(events) + 1)]:
        if event == "add":
            outbox.add(number).forget.topic = len(sizes)
            sizes.append(number + ENTRY_BYTES)
        elif event == "credit":
            granted += number
            outbox.credit += number
        elif event == "owe":
            owed += number
            outbox.return_credit(number)
        else:
            ready = outbox.is_ready
            batch = outbox.take()
            assert (batch is not None) is ready
            if batch is not None:
                topics = [entry.forget.topic for entry in batch.entries]
                assert len(topics) <= 1 or sum(sizes[topic] for topic in topics) <= MAX_BATCH_BYTES
                out += topics
                written += bool(topics)
                paid += batch.credit
        assert outbox.credit == granted - written >= 0
        assert outbox.waiting_bytes == sum(sizes) - sum(sizes[topic] for topic in out)
    assert out == list(range(len(sizes)))
    assert paid + outbox.credit_owed == owed
    assert outbox.credit_owed * 2 < WINDOW
