"""Deadlines on a grid."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from trunkline_runtime.deadlines import Deadlines

GRID_S = 0.25


def test_an_item_is_due_at_the_next_multiple_and_never_early() -> None:
    deadlines: Deadlines[str] = Deadlines(GRID_S)
    deadlines.set("a", 1.1)
    assert deadlines.next_due == 1.25
    assert deadlines.take_due(1.2) == []
    assert deadlines.take_due(1.25) == ["a"]
    assert deadlines.next_due is None
    assert len(deadlines) == 0


def test_an_item_that_is_moved_is_due_once_at_its_last_deadline() -> None:
    deadlines: Deadlines[str] = Deadlines(GRID_S)
    deadlines.set("a", 1)
    deadlines.set("a", 3)
    assert deadlines.take_due(2) == []
    assert deadlines.take_due(3) == ["a"]


def test_removed_items_leave_no_more_than_their_ticks() -> None:
    deadlines: Deadlines[int] = Deadlines(GRID_S)
    for item in range(10_000):
        deadlines.set(item, 1 + item % 10 / 10)
        deadlines.remove(item)
    assert len(deadlines._order) <= 5
    assert deadlines.take_due(2) == []
    assert deadlines._order == []


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["set", "remove", "take"]), st.integers(0, 4), st.integers(0, 40).map(lambda n: n / 8)
    )
)


@given(_STEPS)
def test_any_steps_agree_with_a_plain_dict(steps: list[tuple[str, int, float]]) -> None:
    deadlines: Deadlines[int] = Deadlines(GRID_S)
    expected: dict[int, float] = {}
    for act, item, time in steps:
        if act == "set":
            deadlines.set(item, time)
            expected[item] = time
        elif act == "remove":
            deadlines.remove(item)
            expected.pop(item, None)
        else:
            due = {one for one, deadline in expected.items() if -(-deadline // GRID_S) * GRID_S <= time}
            next_due = deadlines.next_due
            assert not due or (next_due is not None and next_due <= time)
            assert set(deadlines.take_due(time)) == due
            expected = {one: deadline for one, deadline in expected.items() if one not in due}
        assert len(deadlines) == len(expected)
