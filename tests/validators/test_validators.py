"""Each validator accepts histories that keep its promise and detects those that break it."""

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


def position(seq: int) -> LogPosition:
    return LogPosition("e1", seq)


def sent(ident: str, client: str = "demo/ann", session: str = "a1", at: float = 0.0) -> Sent:
    return Sent(client=client, session=session, topic=TOPIC, id=ident, content=f"text {ident}", at=at)


def acked(ident: str, seq: int, client: str = "demo/ann", session: str = "a1") -> Acked:
    message = f"e1-{seq}"
    return Acked(
        client=client, session=session, topic=TOPIC, id=ident, message_id=message, position=position(seq)
    )


def heard(ident: str, seq: int, client: str = "demo/bob", session: str = "b1", at: float = 0.0) -> Received:
    return Received(
        client=client,
        session=session,
        topic=TOPIC,
        position=position(seq),
        message_id=f"e1-{seq}",
        client_id=ident,
        content=f"text {ident}",
        at=at,
    )


def logged(ident: str, seq: int, **changes: str) -> LogEntry:
    entry = LogEntry(
        topic=TOPIC,
        position=position(seq),
        message_id=f"e1-{seq}",
        role="user",
        author="ann",
        client_id=ident,
        content=f"text {ident}",
    )
    return replace(entry, **changes)


def started(
    seq: int, client: str = "demo/bob", session: str = "b1", wanted: int | None = None
) -> TopicStarted:
    asked = None if wanted is None else position(wanted)
    return TopicStarted(
        client=client,
        session=session,
        topic=TOPIC,
        position=position(seq),
        wanted=asked,
        recovered=asked is not None,
    )


LOG = [logged("m1", 1), logged("m2", 2), logged("m3", 3)]


def valid_history(*more: Event) -> History:
    """History without violations: Ann sends three messages; Bob receives one, and the rest on resume."""
    events = [
        started(0, "demo/ann", "a1"),
        started(0),
        sent("m1", at=1.0),
        acked("m1", 1),
        heard("m1", 1, at=1.1),
        Closed(client="demo/bob", session="b1", code=1006, ours=True),
        sent("m2", at=2.0),
        sent("m3", at=3.0),
        acked("m2", 2),
        started(1, session="b2", wanted=1),
        heard("m2", 2, session="b2", at=2.4),
        acked("m3", 3),
        heard("m3", 3, session="b2", at=3.1),
    ]
    return History([*events, *more], list(LOG), {"a1", "b2"})


def test_a_history_that_keeps_every_promise_is_accepted() -> None:
    history = valid_history()
    assert_promises(history)
    assert not list(bounded(history, delay_s=0.5))


def test_a_violation_fails_with_the_name_of_the_promise() -> None:
    with pytest.raises(AssertionError, match=r"ordered: 1 violations"):
        assert_promises(valid_history(heard("m2", 2, session="b2")))


def test_durable_finds_an_ack_whose_message_is_not_in_the_log() -> None:
    assert list(durable(valid_history(sent("m4"), acked("m4", 4))))


def test_durable_finds_a_received_message_that_vanished() -> None:
    assert list(durable(valid_history(heard("m4", 4, session="b2"))))


def test_durable_finds_a_message_whose_text_changed() -> None:
    history = valid_history()
    history.log[0] = logged("m1", 1, content="other words")
    assert len(list(durable(history))) == 2


def test_durable_ignores_logs_erased_by_the_test() -> None:
    history = valid_history()
    history.log.clear()
    history.erased.add("e1")
    assert not list(durable(history))


def test_ordered_finds_a_message_after_a_later_one() -> None:
    history = History([heard("m2", 2), heard("m1", 1)])
    assert list(ordered(history))


def test_ordered_finds_a_message_after_the_ack_of_a_later_one() -> None:
    events = [acked("m2", 2), heard("m1", 1, client="demo/ann", session="a1")]
    assert list(ordered(History(events)))


def test_ordered_accepts_a_late_ack() -> None:
    events = [heard("m2", 2, client="demo/ann", session="a1"), acked("m1", 1)]
    assert not list(ordered(History(events)))


def test_gapless_finds_a_gap() -> None:
    history = History([started(0), heard("m1", 1), heard("m3", 3)], list(LOG))
    assert list(gapless(history))


def test_gapless_finds_a_gap_at_the_end_of_an_open_connection() -> None:
    history = History([started(0), heard("m1", 1)], list(LOG))
    assert not list(gapless(history))
    history.open_sessions.add("b1")
    assert len(list(gapless(history))) == 2


def test_gapless_finds_an_open_connection_that_received_nothing() -> None:
    assert len(list(gapless(History([started(0)], list(LOG), {"b1"})))) == 3


def test_gapless_finds_a_message_received_twice() -> None:
    assert list(gapless(valid_history(heard("m3", 3, session="b2"))))


def test_gapless_finds_a_message_from_before_the_start() -> None:
    assert list(gapless(valid_history(heard("m1", 1, session="b2"))))


def test_gapless_finds_a_resume_at_a_different_position() -> None:
    history = History([started(2, session="b2", wanted=1), heard("m3", 3, session="b2")], list(LOG))
    wrong = replace(started(2, session="b2", wanted=1), recovered=False)
    assert list(gapless(history))
    assert not list(gapless(replace(history, events=[wrong, heard("m3", 3, session="b2")])))


def test_gapless_finds_an_own_message_that_was_both_acked_and_received() -> None:
    assert list(gapless(valid_history(heard("m3", 3, client="demo/ann", session="a1"))))


def test_gapless_accepts_an_own_message_received_on_a_later_connection() -> None:
    again = [
        started(2, "demo/ann", "a2", wanted=2),
        heard("m3", 3, client="demo/ann", session="a2"),
        sent("m3", session="a2"),
        acked("m3", 3, session="a2"),
    ]
    assert not list(gapless(valid_history(*again)))


def test_gapless_accepts_an_own_message_whose_ack_was_lost_with_the_connection() -> None:
    events = [
        started(0, "demo/ann", "a1"),
        sent("m1"),
        sent("m2"),
        acked("m2", 2),
        Closed(client="demo/ann", session="a1", code=1006, ours=True),
    ]
    history = History(events, LOG[:2])
    assert not list(gapless(history))
    history.open_sessions.add("a1")
    assert list(gapless(history))


def test_once_finds_a_retry_that_made_a_second_message() -> None:
    history = valid_history()
    history.log.append(logged("m3", 4))
    assert list(once(history))


def test_once_finds_a_retry_with_a_different_response() -> None:
    assert list(once(valid_history(acked("m3", 4))))


def test_once_accepts_a_retry_with_the_same_response() -> None:
    assert not list(once(valid_history(sent("m3"), acked("m3", 3))))


def test_once_finds_two_replies_to_one_message() -> None:
    history = valid_history()
    reply = logged("", 4, role="agent", author="", reply_to="e1-1")
    history.log.append(reply)
    assert not list(once(history))
    history.log.append(replace(reply, position=position(5)))
    assert list(once(history))


def test_once_accepts_a_reply_after_an_incomplete_one() -> None:
    answers = [
        logged("", 2, role="agent", reply_to="e1-1", state="expired"),
        logged("", 3, role="agent", reply_to="e1-1"),
    ]
    assert not list(once(History(log=[logged("m1", 1), *answers])))


def ended(state: str = "complete", content: str = "text r", session: str = "b1") -> Ended:
    return Ended(
        client="demo/bob",
        session=session,
        topic=TOPIC,
        position=position(3),
        message_id="e1-2",
        state=state,
        content=content,
    )


def passed(seq: int) -> Advanced:
    return Advanced(client="demo/bob", session="b1", topic=TOPIC, position=position(seq))


def test_terminal_accepts_an_end_that_equals_the_log() -> None:
    history = History([ended(), ended(session="b2")], [logged("r", 2)])
    assert not list(terminal(history))


@pytest.mark.parametrize("event", [ended("cancelled"), ended(content="text")])
def test_terminal_finds_an_end_that_differs_from_the_log(event: Ended) -> None:
    assert list(terminal(History([event], [logged("r", 2)])))


def test_terminal_finds_an_end_received_twice() -> None:
    assert list(terminal(History([ended(), ended()], [logged("r", 2)])))


def test_terminal_finds_a_message_that_never_ends() -> None:
    assert list(terminal(History([], [logged("r", 2, state="open")])))


def test_terminal_finds_the_end_of_a_message_that_is_not_in_the_log() -> None:
    assert list(terminal(History([ended()], [])))


def test_gapless_counts_entries_other_than_messages() -> None:
    start = TopicStarted(client="demo/bob", session="b1", topic=TOPIC, position=position(0))
    events: list[Event] = [start, heard("m1", 1), passed(2), heard("m3", 3)]
    assert not list(gapless(History(events)))
    assert list(gapless(History([start, heard("m1", 1), heard("m3", 3)])))


def test_ordered_finds_a_change_after_a_later_message() -> None:
    assert list(ordered(History([heard("m3", 3), passed(2)])))


def test_durable_ignores_the_text_of_an_open_message() -> None:
    event = replace(heard("r", 2), content="te", state="open")
    assert not list(durable(History([event], [logged("r", 2)])))


def test_isolated_finds_a_topic_of_another_tenant() -> None:
    assert list(isolated(valid_history(started(0, client="acme/eve", session="e1"))))


def test_isolated_finds_a_text_of_another_tenant() -> None:
    mine = replace(heard("m1", 1, client="acme/eve", session="e1"), topic="acme/echo/web/group:team")
    assert list(isolated(valid_history(mine)))
    entry = replace(logged("m1", 1), topic="acme/echo/web/group:team")
    assert list(isolated(replace(valid_history(), log=[entry])))


def test_isolated_accepts_a_text_that_both_tenants_sent() -> None:
    topic = "acme/echo/web/group:team"
    too = replace(sent("m1", client="acme/eve", session="e1"), topic=topic)
    mine = replace(heard("m1", 1, client="acme/eve", session="e1"), topic=topic)
    assert not list(isolated(valid_history(too, mine)))


def test_bounded_finds_a_process_that_grew() -> None:
    grown = MemorySampled(process="edge", rss_bytes=100 << 20)
    assert list(bounded(valid_history(grown), rss_bytes={"edge": 99 << 20}))
    assert not list(bounded(valid_history(grown), rss_bytes={"edge": 100 << 20, "router": 1}))


def test_bounded_finds_a_delay_of_clients_that_are_not_slow() -> None:
    assert list(bounded(valid_history(), delay_s=0.2))
    assert not list(bounded(valid_history(), delay_s=0.2, slow={"demo/bob"}))


def test_explicit_finds_codes_that_are_not_in_the_catalogue() -> None:
    assert list(explicit(valid_history(Rejected(client="demo/ann", session="a1", id="m1", code="OOPS"))))
    assert not list(
        explicit(valid_history(Rejected(client="demo/ann", session="a1", id="m1", code="INVALID_ARGUMENT")))
    )


@pytest.mark.parametrize(("code", "reason"), [(1006, ""), (4000, ""), (4001, "SLOW_CONSUMER"), (1002, "")])
def test_explicit_finds_closes_that_are_not_in_the_catalogue(code: int, reason: str) -> None:
    assert list(explicit(valid_history(Closed(client="demo/ann", session="a1", code=code, reason=reason))))


def test_explicit_accepts_a_close_in_the_catalogue() -> None:
    closed = Closed(client="demo/ann", session="a1", code=4000, reason="SLOW_CONSUMER")
    assert not list(explicit(valid_history(closed)))
