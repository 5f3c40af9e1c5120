"""Streamed replies as workers, backends and clients see them."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline.v1.agent_service_pb2 import AttachRequest
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import CancelledFrame
from trunkline.v1.message_pb2 import Message
from trunkline_router.core.commits.effects import ReadPages

from tests.router.core.harness.client import OPEN, Client, text_of
from tests.router.core.harness.invariants import check_all
from tests.router.core.harness.producers import CANCELLED, COMPLETE, EXPIRED, FAILED, Producing, Streaming
from tests.router.core.harness.router import ALICE, ROOM, Router


def client_with_worker(router: Router, **options: Any) -> tuple[Client, Streaming, int]:
    """Return a client that has published a message, the worker that holds its delivery, and the delivery."""
    client, worker = router.connected(ALICE, user="x"), Streaming(router)
    router.say(client, "question", ident="q")
    router.run()
    worker.read()
    (number,) = worker.given
    return client, worker, number


def opened(router: Router, worker: Streaming, target: Any = ALICE, key: str = "k") -> tuple[int, str]:
    """Open a reply; return its number and the message's id."""
    reply = worker.open(target, key)
    router.run()
    worker.read()
    return reply, worker.opened[reply].message.id


def stored(router: Router, message_id: str) -> Message:
    """Return a message as the log holds it."""
    body = router.log.message("t", message_id)
    assert body is not None
    return Message.FromString(body)


def test_subscribers_see_a_reply_open_grow_and_end() -> None:
    router = Router()
    client, worker, number = client_with_worker(router)
    reply = worker.open(number)
    assert "message" not in client.kinds(), "published before it is on disk"
    router.run()
    message_id = client.frames[-1].message.id
    worker.read()
    assert worker.opened[reply].message.id == message_id
    opened_message = client.frames[-1].message
    assert (opened_message.state, opened_message.reply_to, opened_message.author.name) == (OPEN, "e1-1", "a")
    worker.add(reply, 0, "Hel", "lo")
    assert client.text(message_id) == "Hello", "deltas are published at once"
    worker.end(reply, 2)
    assert client.known[message_id].state == OPEN
    router.run()
    worker.read()
    assert client.known[message_id].state == worker.ended[reply].state == COMPLETE
    assert worker.ended[reply].position.seq == 3
    assert text_of(stored(router, message_id)) == "Hello"
    check_all(router.core, router.log, at_rest=True)


def test_a_late_subscriber_gets_the_text_so_far_in_one_frame_then_deltas() -> None:
    router = Router()
    _, worker, number = client_with_worker(router)
    reply, _ = opened(router, worker, number)
    worker.add(reply, 0, *"abc")
    late = router.connected(ALICE, edge="e2")
    worker.add(reply, 3, "d")
    assert late.kinds() == ["connected", "message", "delta"]
    assert (late.frames[1].message.next_index, text_of(late.frames[1].message)) == (3, "abc")
    assert late.frames[2].delta.index == 3


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_resuming_client_gets_missed_messages_in_their_current_form(has_ended: bool) -> None:
    router = Router()
    client, worker, number = client_with_worker(router)
    reply, message_id = opened(router, worker, number)
    worker.add(reply, 0, "a")
    place, known = dict(client.place), client.known
    router.close(client)
    worker.add(reply, 1, "b")
    if has_ended:
        worker.end(reply, 2)
        router.run()
    again = router.edge().new_client(ALICE, "x")
    again.resume, again.known = place, known
    router.edge().open(again)
    router.run()
    assert again.frames[0].connected.recovered
    assert again.kinds()[1:] == ["change" if has_ended else "message"]
    assert (again.text(message_id), again.known[message_id].state) == ("ab", COMPLETE if has_ended else OPEN)


def test_subscribers_get_missed_deltas_after_a_relink() -> None:
    router = Router()
    client, worker, number = client_with_worker(router)
    reply, message_id = opened(router, worker, number)
    worker.add(reply, 0, "a")
    router.break_link()
    worker.add(reply, 1, "b")
    router.link("e1")
    router.run()
    worker.add(reply, 2, "c")
    assert client.text(message_id) == "abc"


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_a_worker_takes_over_after_a_restart_where_the_log_ends(is_checkpointed: bool) -> None:
    router = Router()
    client, worker, number = client_with_worker(router)
    reply, message_id = opened(router, worker, number)
    worker.add(reply, 0, "a", "b")
    if is_checkpointed:
        router.core.checkpoint()
        router.run()
        worker.read()
        assert worker.progress[-1].durable_index == 2
    worker.add(reply, 2, "c")
    router.restart()
    router.link("e1")
    successor = Streaming(router, "w2")
    router.run()
    successor.read()
    known = "ab" if is_checkpointed else ""
    assert client.text(message_id) == known
    (again,) = successor.given
    assert again == number
    reply, same = opened(router, successor, number)
    assert (same, successor.opened[reply].message.next_index) == (message_id, len(known))
    successor.add(reply, len(known), "Z")
    successor.end(reply, len(known) + 1)
    router.run()
    assert (client.text(message_id), client.known[message_id].state) == (known + "Z", COMPLETE)


def test_a_replaced_producer_is_fenced_once_the_takeover_is_committed() -> None:
    router = Router()
    client, worker, _ = client_with_worker(router)
    other = Streaming(router, "w2")
    reply, message_id = opened(router, worker)
    worker.add(reply, 0, "a")
    second = other.open(ALICE)
    router.write()
    router.report_commit()
    worker.add(reply, 1, "b")
    router.run()
    worker.read()
    other.read()
    assert worker.progress[-1].error.code == "PRODUCER_FENCED"
    assert text_of(other.opened[second].message) == "ab"
    worker.add(reply, 2, "late")
    worker.end(reply, 3)
    assert worker.progress[-1].error.code == worker.ended[reply].error.code == "PRODUCER_FENCED"
    other.add(second, 2, "c")
    assert client.text(message_id) == "abc"
    assert router.log.producer(message_id) == ("w2", 2)


def test_a_backend_takes_over_from_another_one() -> None:
    router = Router()
    client = router.connected(ALICE)
    one = Producing(router, ALICE)
    router.run()
    assert one.add(0, "a") == 1
    two = Producing(router, ALICE)
    router.run()
    with pytest.raises(Refused, match="was taken over by b"):
        one.add(1, "late")
    assert two.message is not None
    assert (text_of(two.message), two.epoch) == ("a", 2)
    two.add(1, "b")
    two.end()
    router.run()
    third = Producing(router, ALICE)
    router.run()
    assert third.message is not None
    assert (third.message.state, client.text(third.message.id), third.epoch) == (COMPLETE, "ab", 0)


def test_a_takeover_that_fails_to_commit_changes_nothing() -> None:
    router = Router()
    _, worker, _ = client_with_worker(router)
    other = Streaming(router, "w2")
    reply, message_id = opened(router, worker)
    second = other.open(ALICE)
    router.write()
    router.report_commit()
    router.fail()
    other.read()
    assert other.opened[second].error.code == "LOG_UNAVAILABLE"
    worker.add(reply, 0, "a")
    router.core.checkpoint()
    router.run()
    assert router.log.producer(message_id) == ("w", 1)
    assert router.core.open_messages.get(message_id).producer == ("w", 1)  # type: ignore[union-attr]


@pytest.mark.parametrize("state", [COMPLETE, CANCELLED, FAILED])
def test_a_repeated_end_gets_the_same_answer(state: Any) -> None:
    router = Router()
    _, worker, _ = client_with_worker(router)
    reply, _ = opened(router, worker)
    for _ in range(2):
        worker.end(reply, 0, state)
    router.run()
    worker.read()
    first = worker.ended[reply]
    worker.end(reply, 0, COMPLETE)
    assert worker.ended[reply] == first
    assert first.state == state
    assert len(router.log.changes(ALICE)) == 1
    worker.add(reply, 0, "late")
    assert worker.progress[-1].error.code == "MESSAGE_ENDED"


def test_an_end_with_missing_deltas_or_without_a_commit_leaves_it_open() -> None:
    router = Router()
    client, worker, _ = client_with_worker(router)
    reply, message_id = opened(router, worker)
    worker.add(reply, 0, "a")
    worker.end(reply, 2)
    assert worker.ended.pop(reply).error.code == "DELTA_GAP"
    worker.end(reply, 1)
    router.fail()
    worker.read()
    assert worker.ended.pop(reply).error.code == "LOG_UNAVAILABLE"
    worker.add(reply, 1, "b")
    worker.end(reply, 2)
    router.run()
    assert (client.text(message_id), client.known[message_id].state) == ("ab", COMPLETE)


@pytest.mark.parametrize("how", ["gone", "silent"])
def test_a_reply_without_its_worker_expires_with_the_text_so_far(how: str) -> None:
    router = Router()
    client, worker, _ = client_with_worker(router)
    reply, message_id = opened(router, worker)
    worker.add(reply, 0, "half")
    if how == "gone":
        worker.detach()
    client.edge.link.heard_at = 100.0  # type: ignore[union-attr]
    router.tick(14.9)
    router.run()
    assert client.known[message_id].state == OPEN
    router.tick(0.1)
    router.run()
    assert (client.known[message_id].state, client.text(message_id)) == (EXPIRED, "half")
    assert text_of(stored(router, message_id)) == "half"


def test_a_worker_that_sends_something_keeps_its_replies_open() -> None:
    router = Router()
    client, worker, _ = client_with_worker(router)
    _, message_id = opened(router, worker)
    for _ in range(10):
        client.edge.link.heard_at = router.now + 4  # type: ignore[union-attr]
        router.tick(4)
        worker.send(AttachRequest())
    router.run()
    assert client.known[message_id].state == OPEN


def test_open_messages_of_a_tenant_are_limited() -> None:
    router = Router(max_open_messages=1)
    _, worker, _ = client_with_worker(router)
    reply, _ = opened(router, worker)
    over = worker.open(ALICE, "k2")
    assert worker.opened[over].error.code == "TOO_MANY_OPEN_MESSAGES"
    worker.end(reply, 0)
    router.run()
    opened(router, worker, ALICE, "k3")
    check_all(router.core, router.log, at_rest=True)


def test_all_open_messages_together_are_bounded() -> None:
    router = Router(max_open_bytes=1000)
    _, worker, _ = client_with_worker(router)
    reply, _ = opened(router, worker)
    worker.add(reply, 0, "x" * 1000)
    worker.add(reply, 1, "y")
    assert worker.progress[-1].error.code == "OVERLOADED"
    worker.end(reply, 1)
    router.run()
    reply, _ = opened(router, worker, ALICE, "k3")
    worker.add(reply, 0, "z")
    check_all(router.core, router.log, at_rest=False)
    assert worker.progress[-1].error.code == ""


def test_an_erasure_removes_the_open_messages_of_its_log() -> None:
    router = Router()
    _, worker, _ = client_with_worker(router)
    reply, _ = opened(router, worker)
    worker.add(reply, 0, "a")
    router.core.checkpoint()
    worker.end(reply, 1)
    router.reset(ALICE)
    router.run()
    worker.read()
    assert worker.ended[reply].error.code == "MESSAGE_NOT_FOUND"
    worker.add(reply, 1, "b")
    assert worker.progress[-1].error.code == "REPLY_NOT_OPENED"
    check_all(router.core, router.log, at_rest=True)


def test_a_checkpoint_of_an_erased_log_does_not_reach_its_successor() -> None:
    router = Router()
    worker = Streaming(router)
    reply, _ = opened(router, worker, ROOM)
    worker.add(reply, 0, "old")
    router.core.checkpoint()
    router.reset(ROOM)
    _, message_id = opened(router, worker, ROOM, "k2")
    assert message_id.endswith("-1")
    router.restart()
    (message,) = router.core.open_messages.of_topic(ROOM)
    assert text_of(message.snapshot()) == ""


@pytest.mark.parametrize("one_commit", [True, False])
@pytest.mark.parametrize("first", ["cancel", "end"])
def test_the_first_of_a_cancel_and_an_end_wins_for_all(first: str, one_commit: bool) -> None:
    router = Router()
    client, worker, _ = client_with_worker(router)
    others = [router.connected(ALICE, edge="e2"), client]
    for turn in range(250):
        reply, message_id = opened(router, worker, ALICE, f"k{turn}")
        worker.add(reply, 0, "a")
        for event in [first, "end" if first == "cancel" else "cancel"]:
            if event == "cancel":
                router.frame(client, cancel={"message_id": message_id})
            else:
                worker.end(reply, 1)
            if not one_commit:
                router.write()
        router.run()
        worker.read()
        state = CANCELLED if first == "cancel" else COMPLETE
        answer = client.last("cancelled")
        assert isinstance(answer, CancelledFrame)
        assert [(r.message_id, r.state) for r in answer.replies] == [(message_id, state)]
        assert worker.ended[reply].state == stored(router, message_id).state == state
        assert {other.known[message_id].state for other in others} == {state}
        assert [c.message_id for c in router.log.changes(ALICE)].count(message_id) == 1
    check_all(router.core, router.log, at_rest=True)


@pytest.mark.parametrize("came_by", ["connect", "re-link"])
@pytest.mark.parametrize("event", ["open", "end"])
def test_a_client_subscribed_by_a_read_ahead_of_the_core_misses_nothing(came_by: str, event: str) -> None:
    router = Router()
    worker = Streaming(router)
    client = router.connected(ALICE) if came_by == "re-link" else None
    router.broadcast(ALICE, "before")
    router.run()
    if event == "end":
        reply, _ = opened(router, worker)
    if client is not None:
        router.break_link()
        router.link("e1")
    else:
        client = router.open(ALICE)
    if event == "open":
        reply = worker.open(ALICE)
    else:
        worker.end(reply)
    router.write()
    while router.core.effects.reads or router.reads:
        router.read_log()
        router.return_reads()
    router.report_commit()
    router.run()
    worker.read()
    if event == "open":
        worker.add(reply, 0, "a")
        assert client.text("e1-2") == "a"
    else:
        assert "e1-2" not in client.known or client.known["e1-2"].state == COMPLETE
    assert client.place[ALICE] == router.log.head(ALICE)


def test_a_client_that_resumes_while_a_message_ends_gets_its_final_form() -> None:
    router = Router()
    client, worker, number = client_with_worker(router)
    reply, message_id = opened(router, worker, number)
    place, known = dict(client.place), client.known
    router.close(client)
    worker.add(reply, 0, "missed")
    again = router.edge().new_client(ALICE, "x")
    again.resume, again.known = place, known
    # A missed message, so that the log is read.
    router.broadcast(ALICE, "more")
    router.run()
    router.edge().open(again)
    router.carry()
    while not any(isinstance(read, ReadPages) for read in router.core.effects.reads):
        router.read_log()
        router.return_reads()
    router.read_log()
    worker.end(reply, 1)
    router.write()
    router.report_commit()
    router.return_reads()
    router.run()
    assert (again.text(message_id), again.known[message_id].state) == ("missed", COMPLETE)
