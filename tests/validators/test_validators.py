"""Each validator accepts a history that keeps its promise and finds the one that breaks it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.validators.bounded import bounded
from tests.validators.durable import durable
from tests.validators.explicit import explicit
from tests.validators.gapless import gapless
from tests.validators.history import (
    Acked,
    Advanced,
    Closed,
    Ended,
    Event,
    History,
    LogEntry,
    LogPosition,
    MemorySampled,
    Received,
    Rejected,
    Sent,
    TopicStarted,
)
from tests.validators.isolated import isolated
from tests.validators.once import once
from tests.validators.ordered import ordered
from tests.validators.promises import assert_promises
from tests.validators.terminal import terminal

TOPIC = "demo/echo/web/group:team"


def place(seq: int) -> LogPosition:
    return LogPosition("e1", seq)


def said(ident: str, client: str = "demo/ann", life: str = "a1", at: float = 0.0) -> Sent:
    return Sent(client=client, life=life, topic=TOPIC, id=ident, content=f"text {ident}", at=at)


def acked(ident: str, seq: int, client: str = "demo/ann", life: str = "a1") -> Acked:
    message = f"e1-{seq}"
    return Acked(client=client, life=life, topic=TOPIC, id=ident, message_id=message, place=place(seq))


def heard(ident: str, seq: int, client: str = "demo/bob", life: str = "b1", at: float = 0.0) -> Received:
    return Received(
        client=client,
        life=life,
        topic=TOPIC,
        place=place(seq),
        message_id=f"e1-{seq}",
        client_id=ident,
        content=f"text {ident}",
        at=at,
    )


def logged(ident: str, seq: int, **changes: str) -> LogEntry:
    entry = LogEntry(
        topic=TOPIC,
        place=place(seq),
        message_id=f"e1-{seq}",
        role="user",
        author="ann",
        client_id=ident,
        content=f"text {ident}",
    )
    return replace(entry, **changes)


def started(seq: int, client: str = "demo/bob", life: str = "b1", wanted: int | None = None) -> TopicStarted:
    asked = None if wanted is None else place(wanted)
    return TopicStarted(
        client=client, life=life, topic=TOPIC, place=place(seq), wanted=asked, recovered=asked is not None
    )


LOG = [logged("m1", 1), logged("m2", 2), logged("m3", 3)]


def kept(*more: Event) -> History:
    """Ann says three things; Bob hears one, breaks, comes back and hears the rest. No promise is broken."""
    events = [
        started(0, "demo/ann", "a1"),
        started(0),
        said("m1", at=1.0),
        acked("m1", 1),
        heard("m1", 1, at=1.1),
        Closed(client="demo/bob", life="b1", code=1006, ours=True),
        said("m2", at=2.0),
        said("m3", at=3.0),
        acked("m2", 2),
        started(1, life="b2", wanted=1),
        heard("m2", 2, life="b2", at=2.4),
        acked("m3", 3),
        heard("m3", 3, life="b2", at=3.1),
    ]
    return History([*events, *more], list(LOG), {"a1", "b2"})


def test_a_history_that_keeps_every_promise_is_accepted() -> None:
    history = kept()
    assert_promises(history)
    assert not list(bounded(history, delay_s=0.5))


def test_a_violation_fails_with_the_promise_s_name() -> None:
    with pytest.raises(AssertionError, match=r"ordered: 1 violations"):
        assert_promises(kept(heard("m2", 2, life="b2")))


def test_durable_finds_an_ack_whose_message_is_not_in_the_log() -> None:
    assert list(durable(kept(said("m4"), acked("m4", 4))))


def test_durable_finds_a_message_that_was_shown_and_vanished() -> None:
    assert list(durable(kept(heard("m4", 4, life="b2"))))


def test_durable_finds_a_message_whose_words_changed() -> None:
    history = kept()
    history.log[0] = logged("m1", 1, content="other words")
    assert len(list(durable(history))) == 2


def test_durable_leaves_out_what_the_test_had_erased() -> None:
    history = kept()
    history.log.clear()
    history.erased.add("e1")
    assert not list(durable(history))


def test_ordered_finds_a_message_after_a_later_one() -> None:
    history = History([heard("m2", 2), heard("m1", 1)])
    assert list(ordered(history))


def test_ordered_finds_a_message_after_the_ack_of_a_later_one() -> None:
    events = [acked("m2", 2), heard("m1", 1, client="demo/ann", life="a1")]
    assert list(ordered(History(events)))


def test_ordered_accepts_a_late_ack() -> None:
    events = [heard("m2", 2, client="demo/ann", life="a1"), acked("m1", 1)]
    assert not list(ordered(History(events)))


def test_gapless_finds_a_hole() -> None:
    history = History([started(0), heard("m1", 1), heard("m3", 3)], list(LOG))
    assert list(gapless(history))


def test_gapless_finds_a_hole_at_the_end_of_an_open_connection() -> None:
    history = History([started(0), heard("m1", 1)], list(LOG))
    assert not list(gapless(history))
    history.open_lives.add("b1")
    assert len(list(gapless(history))) == 2


def test_gapless_finds_an_open_connection_that_was_shown_nothing() -> None:
    assert len(list(gapless(History([started(0)], list(LOG), {"b1"})))) == 3


def test_gapless_finds_a_message_that_came_twice() -> None:
    assert list(gapless(kept(heard("m3", 3, life="b2"))))


def test_gapless_finds_a_message_from_before_the_start() -> None:
    assert list(gapless(kept(heard("m1", 1, life="b2"))))


def test_gapless_finds_a_recovery_that_goes_on_from_elsewhere() -> None:
    history = History([started(2, life="b2", wanted=1), heard("m3", 3, life="b2")], list(LOG))
    wrong = replace(started(2, life="b2", wanted=1), recovered=False)
    assert list(gapless(history))
    assert not list(gapless(replace(history, events=[wrong, heard("m3", 3, life="b2")])))


def test_gapless_finds_an_own_message_that_was_both_acked_and_shown() -> None:
    assert list(gapless(kept(heard("m3", 3, client="demo/ann", life="a1"))))


def test_gapless_accepts_an_own_message_met_again_on_a_later_connection() -> None:
    again = [
        started(2, "demo/ann", "a2", wanted=2),
        heard("m3", 3, client="demo/ann", life="a2"),
        said("m3", life="a2"),
        acked("m3", 3, life="a2"),
    ]
    assert not list(gapless(kept(*again)))


def test_gapless_accepts_an_own_message_whose_ack_was_lost_with_the_connection() -> None:
    events = [
        started(0, "demo/ann", "a1"),
        said("m1"),
        said("m2"),
        acked("m2", 2),
        Closed(client="demo/ann", life="a1", code=1006, ours=True),
    ]
    history = History(events, LOG[:2])
    assert not list(gapless(history))
    history.open_lives.add("a1")
    assert list(gapless(history))


def test_once_finds_a_retry_that_made_a_second_message() -> None:
    history = kept()
    history.log.append(logged("m3", 4))
    assert list(once(history))


def test_once_finds_a_retry_that_was_answered_otherwise() -> None:
    assert list(once(kept(acked("m3", 4))))


def test_once_accepts_a_retry_with_the_same_answer() -> None:
    assert not list(once(kept(said("m3"), acked("m3", 3))))


def test_once_finds_two_replies_to_one_message() -> None:
    history = kept()
    reply = logged("", 4, role="agent", author="", reply_to="e1-1")
    history.log.append(reply)
    assert not list(once(history))
    history.log.append(replace(reply, place=place(5)))
    assert list(once(history))


def test_once_accepts_an_answer_after_one_that_broke_off() -> None:
    answers = [
        logged("", 2, role="agent", reply_to="e1-1", state="expired"),
        logged("", 3, role="agent", reply_to="e1-1"),
    ]
    assert not list(once(History(log=[logged("m1", 1), *answers])))


def ended(state: str = "complete", content: str = "text r", life: str = "b1") -> Ended:
    return Ended(
        client="demo/bob",
        life=life,
        topic=TOPIC,
        place=place(3),
        message_id="e1-2",
        state=state,
        content=content,
    )


def passed(seq: int) -> Advanced:
    return Advanced(client="demo/bob", life="b1", topic=TOPIC, place=place(seq))


def test_terminal_accepts_one_end_that_is_the_log_s() -> None:
    history = History([ended(), ended(life="b2")], [logged("r", 2)])
    assert not list(terminal(history))


@pytest.mark.parametrize("event", [ended("cancelled"), ended(content="text")])
def test_terminal_finds_an_end_that_is_not_the_log_s(event: Ended) -> None:
    assert list(terminal(History([event], [logged("r", 2)])))


def test_terminal_finds_an_end_that_came_twice() -> None:
    assert list(terminal(History([ended(), ended()], [logged("r", 2)])))


def test_terminal_finds_a_message_that_is_open_for_ever() -> None:
    assert list(terminal(History([], [logged("r", 2, state="open")])))


def test_terminal_finds_the_end_of_a_message_that_is_not_in_the_log() -> None:
    assert list(terminal(History([ended()], [])))


def test_gapless_counts_what_is_no_message() -> None:
    start = TopicStarted(client="demo/bob", life="b1", topic=TOPIC, place=place(0))
    shown: list[Event] = [start, heard("m1", 1), passed(2), heard("m3", 3)]
    assert not list(gapless(History(shown)))
    assert list(gapless(History([start, heard("m1", 1), heard("m3", 3)])))


def test_ordered_finds_a_change_after_a_later_message() -> None:
    assert list(ordered(History([heard("m3", 3), passed(2)])))


def test_durable_leaves_the_words_of_an_open_message_alone() -> None:
    event = replace(heard("r", 2), content="te", state="open")
    assert not list(durable(History([event], [logged("r", 2)])))


def test_isolated_finds_a_topic_of_another_tenant() -> None:
    assert list(isolated(kept(started(0, client="acme/eve", life="e1"))))


def test_isolated_finds_words_of_another_tenant() -> None:
    mine = replace(heard("m1", 1, client="acme/eve", life="e1"), topic="acme/echo/web/group:team")
    assert list(isolated(kept(mine)))
    entry = replace(logged("m1", 1), topic="acme/echo/web/group:team")
    assert list(isolated(replace(kept(), log=[entry])))


def test_isolated_accepts_the_same_words_where_both_said_them() -> None:
    topic = "acme/echo/web/group:team"
    too = replace(said("m1", client="acme/eve", life="e1"), topic=topic)
    mine = replace(heard("m1", 1, client="acme/eve", life="e1"), topic=topic)
    assert not list(isolated(kept(too, mine)))


def test_bounded_finds_a_process_that_grew() -> None:
    grown = MemorySampled(process="edge", rss_bytes=100 << 20)
    assert list(bounded(kept(grown), rss_bytes={"edge": 99 << 20}))
    assert not list(bounded(kept(grown), rss_bytes={"edge": 100 << 20, "router": 1}))


def test_bounded_finds_a_delay_of_those_that_are_not_slow() -> None:
    assert list(bounded(kept(), delay_s=0.2))
    assert not list(bounded(kept(), delay_s=0.2, slow={"demo/bob"}))


def test_explicit_finds_codes_that_are_not_in_the_catalogue() -> None:
    assert list(explicit(kept(Rejected(client="demo/ann", life="a1", id="m1", code="OOPS"))))
    assert not list(explicit(kept(Rejected(client="demo/ann", life="a1", id="m1", code="INVALID_ARGUMENT"))))


@pytest.mark.parametrize(("code", "reason"), [(1006, ""), (4000, ""), (4001, "SLOW_CONSUMER"), (1002, "")])
def test_explicit_finds_closes_that_are_not_in_the_catalogue(code: int, reason: str) -> None:
    assert list(explicit(kept(Closed(client="demo/ann", life="a1", code=code, reason=reason))))


def test_explicit_accepts_a_close_of_the_catalogue() -> None:
    closed = Closed(client="demo/ann", life="a1", code=4000, reason="SLOW_CONSUMER")
    assert not list(explicit(kept(closed)))
