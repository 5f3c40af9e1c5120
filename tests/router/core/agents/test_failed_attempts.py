"""Failed attempts: the conversation is notified, later attempts back off, and the last one is reported."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import AttachRequest
from trunkline.v1.frame_pb2 import REPLY_STATUS_ENDED, REPLY_STATUS_RETRYING
from trunkline.v1.message_pb2 import CHANGE_KIND_ENDED, ROLE_AGENT, Message
from trunkline.v1.tenant_pb2 import OPENNESS_LOOPBACK, AgentSettings, TenantSettings
from trunkline_router.core.agents.retry_policy import backoff_s
from trunkline_router.core.values.log_records import EntryKind

from tests.router.core.harness.client import Client
from tests.router.core.harness.invariants import check_all
from tests.router.core.harness.producers import FAILED, Streaming, pass_time
from tests.router.core.harness.router import ALICE, ROOM, Router

TEXT = catalogue.AGENT_FAILED.text


def asked(**options: Any) -> tuple[Router, Client, Streaming]:
    """Return a client that has sent a message, whose delivery 1 a worker holds."""
    router = Router(**options)
    client = router.connected(ALICE, user="x")
    worker = Streaming(router)
    router.say(client, "question", ident="q1")
    router.run()
    worker.read()
    return router, client, worker


def statuses(client: Client) -> list[tuple[int, int]]:
    """Return status and attempts of each notification that a client received."""
    found = [frame.reply_status for frame in client.frames if frame.HasField("reply_status")]
    return [(status.status, status.attempts) for status in found]


def declare(router: Router, **settings: int) -> None:
    """Change the settings of all agents of the tenant."""
    router.declare("t", TenantSettings(open_to=OPENNESS_LOOPBACK, agent_defaults=AgentSettings(**settings)))


def answers(router: Router) -> list[Message]:
    """Return the agent's messages in the log."""
    return [
        message
        for kind, body in router.log.logs[ALICE][1]
        if kind is EntryKind.MESSAGE and (message := Message.FromString(body)).author.role == ROLE_AGENT
    ]


def test_the_conversation_is_notified_after_the_first_attempt_and_of_the_end() -> None:
    router, client, worker = asked()
    other = router.connected(ROOM, user="y")
    pass_time(router, 3.0, worker)
    worker.settle(1, retry={"reason": "ValueError: secret"})
    router.run()
    status = client.last("reply_status")
    assert (status.status, status.attempts) == (REPLY_STATUS_RETRYING, 1)
    assert (status.message_id, status.address.conversation.id) == ("e1-1", "alice")
    assert status.next_attempt_at.ToMilliseconds() == 4000
    assert "secret" not in str(client.frames)
    pass_time(router, 1.0, worker)
    worker.settle(1, "answer")
    router.run()
    assert statuses(client) == [(REPLY_STATUS_RETRYING, 1), (REPLY_STATUS_ENDED, 1)]
    assert client.kinds()[-2:] == ["message", "reply_status"]
    assert statuses(other) == []
    check_all(router.core, router.log, at_rest=True)


def test_a_message_answered_at_the_first_attempt_has_no_status() -> None:
    router, client, worker = asked()
    worker.settle(1, "answer")
    router.run()
    assert statuses(client) == []


def test_a_client_that_connects_later_learns_of_the_messages_that_are_retried() -> None:
    router, _, worker = asked()
    worker.settle(1, retry={"after_ms": 3000})
    router.run()
    late = router.connected(ALICE, user="y")
    assert statuses(late) == [(REPLY_STATUS_RETRYING, 1)]
    router.restart()
    router.link("e1")
    Streaming(router)
    router.run()
    later = router.connected(ALICE, user="y")
    assert statuses(later) == [(REPLY_STATUS_RETRYING, 1)]
    assert not later.last("reply_status").HasField("next_attempt_at")


def test_a_client_that_joins_a_group_later_learns_of_the_messages_that_are_retried() -> None:
    router = Router()
    client = router.connected(ROOM, user="x")
    worker = Streaming(router)
    router.say(client, "question")
    router.run()
    worker.settle(1, retry={})
    router.run()
    late = router.connected(ALICE, user="y")
    router.subscribe(late, ROOM)
    router.run()
    assert statuses(late) == [(REPLY_STATUS_RETRYING, 1)]
    assert late.kinds().index("subscribed") < late.kinds().index("reply_status")


def test_delays_double_with_each_attempt_up_to_a_minute_and_are_random() -> None:
    bounds = [backoff_s(attempt, lambda: 1.0) for attempt in range(1, 9)]
    assert bounds == [1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff_s(5000, lambda: 0.5) == 30
    assert backoff_s(3, lambda: 0.25) == 1


def test_a_retry_without_a_delay_waits_for_the_routers_delay() -> None:
    router, _, worker = asked(max_attempts=9)
    for attempt, delay_s in ((1, 1.0), (2, 2.0), (3, 4.0)):
        assert worker.given[1][1] == attempt
        worker.settle(1, retry={})
        pass_time(router, delay_s - 0.1, worker)
        assert not worker.worker.held
        pass_time(router, 0.1, worker)
        worker.read()


def test_the_delivery_of_a_lost_worker_is_repeated_at_once_and_then_with_a_delay() -> None:
    router, client, worker = asked(max_attempts=9)
    worker.detach()
    second = Streaming(router)
    assert 1 in second.worker.held
    assert statuses(client) == [(REPLY_STATUS_RETRYING, 1)]
    second.detach()
    third = Streaming(router)
    router.run()
    assert not third.worker.held
    pass_time(router, 2.0, third)
    assert 1 in third.worker.held


def test_the_last_attempt_is_reported_by_a_failed_reply_in_the_commit_of_the_dead_letter() -> None:
    router, client, worker = asked(max_attempts=2)
    worker.settle(1, retry={"reason": "ValueError: secret"})
    pass_time(router, 1.0, worker)
    worker.settle(1, retry={"reason": "ValueError: secret"})
    router.write()
    assert list(router.log.dead) == [1]
    [answer] = answers(router)
    assert (answer.state, answer.reply_to, answer.author.name) == (FAILED, "e1-1", "a")
    assert (answer.error.code, answer.error.message) == ("AGENT_FAILED", TEXT)
    router.run()
    assert client.last("message") == answer
    assert statuses(client) == [(REPLY_STATUS_RETRYING, 1), (REPLY_STATUS_ENDED, 2)]
    assert "secret" in router.log.dead[1].reason
    assert "secret" not in str(client.frames)
    check_all(router.core, router.log, at_rest=True)


def test_a_dead_letter_that_fails_to_commit_reports_nothing() -> None:
    router, client, worker = asked(max_attempts=1)
    worker.settle(1, retry={})
    router.fail()
    assert (answers(router), router.log.dead) == ([], {})
    assert statuses(client) == []
    worker.read()
    worker.settle(1, "answer")
    router.run()
    assert [answer.parts[0].text.text for answer in answers(router)] == ["answer"]


def test_a_rejected_message_is_reported_in_the_same_way() -> None:
    router, client, worker = asked()
    worker.settle(1, reject={"reason": "secret"})
    router.run()
    assert [answer.error.code for answer in answers(router)] == ["AGENT_FAILED"]
    assert statuses(client) == [(REPLY_STATUS_ENDED, 1)]
    assert "secret" not in str(client.frames)


def test_an_open_reply_reports_the_failure_itself() -> None:
    router, _, worker = asked()
    number = worker.open(1)
    router.run()
    worker.settle(1, reject={})
    router.run()
    worker.read()
    assert worker.ended[number].state == FAILED
    [answer] = answers(router)
    assert (answer.state, answer.error.code) == (FAILED, "AGENT_FAILED")
    assert sum(change.kind == CHANGE_KIND_ENDED for change in router.log.changes(ALICE)) == 1


@pytest.mark.parametrize(
    ("reported", "code", "text"),
    [
        ({}, "AGENT_FAILED", TEXT),
        ({"message": "No credit left"}, "AGENT_FAILED", "No credit left"),
        ({"code": "NO_CREDIT", "message": "No credit left"}, "NO_CREDIT", "No credit left"),
    ],
)
def test_a_reply_may_report_a_failure(reported: dict[str, str], code: str, text: str) -> None:
    router, _, worker = asked()
    batch = AttachRequest()
    batch.settlements.add(delivery_id=1).replies.add(error=reported)
    worker.send(batch)
    router.run()
    [answer] = answers(router)
    assert (answer.state, answer.error.code, answer.error.message) == (FAILED, code, text)
    assert not router.log.unsettled
    assert not router.log.dead


def test_a_reply_with_neither_parts_nor_error_is_refused() -> None:
    router, _, worker = asked()
    batch = AttachRequest()
    settlement = batch.settlements.add(delivery_id=1)
    settlement.replies.add(error={})
    settlement.replies.add()
    worker.send(batch)
    router.run()
    error = worker.results[-1].error
    assert (error.code, error.message) == (
        "INVALID_ARGUMENT",
        "replies[1].parts: must be set unless error is",
    )
    assert not answers(router)


def test_a_streamed_reply_that_fails_without_an_error_gets_the_generic_one() -> None:
    router, _, worker = asked()
    number = worker.open(1)
    router.run()
    worker.end(number, state=FAILED)
    router.run()
    [answer] = answers(router)
    assert (answer.error.code, answer.error.message) == ("AGENT_FAILED", TEXT)


@pytest.mark.parametrize("attempts", [1, 2])
def test_an_agents_settings_limit_its_attempts(attempts: int) -> None:
    router, _, worker = asked(max_attempts=9)
    settings = TenantSettings(
        open_to=OPENNESS_LOOPBACK,
        agent_defaults=AgentSettings(max_attempts=8),
        agents={"a": AgentSettings(max_attempts=attempts)},
    )
    router.declare("t", settings)
    for _ in range(attempts):
        assert not router.log.dead
        worker.settle(1, retry={"after_ms": 1})
        pass_time(router, 0.1, worker)
    assert router.log.dead[1].attempts == attempts


def test_an_agents_settings_limit_the_time_of_its_attempts() -> None:
    router, _, worker = asked(max_attempts=9)
    declare(router, max_retry_s=10)
    worker.settle(1, retry={"after_ms": 9000})
    pass_time(router, 9.0, worker)
    worker.settle(1, retry={"after_ms": 1000})
    assert not router.log.dead
    pass_time(router, 1.0, worker)
    worker.settle(1, retry={"after_ms": 1000})
    router.run()
    assert router.log.dead[1].attempts == 3


def test_a_withdrawn_message_is_retried_no_longer() -> None:
    router, client, worker = asked()
    worker.settle(1, retry={})
    router.run()
    router.frame(client, cancel={"client_id": "q1"})
    router.run()
    assert client.last("cancelled").prevented
    assert statuses(client) == [(REPLY_STATUS_RETRYING, 1), (REPLY_STATUS_ENDED, 1)]
    assert statuses(router.connected(ALICE, user="y")) == []
    check_all(router.core, router.log, at_rest=True)


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_message_withdrawn_during_another_attempt_ends_at_once_and_once(is_lost: bool) -> None:
    router, client, worker = asked()
    worker.settle(1, retry={})
    pass_time(router, 1.0, worker)
    assert worker.worker.held
    for _ in range(2):
        router.frame(client, cancel={"client_id": "q1"})
        router.run()
    ended = [(REPLY_STATUS_RETRYING, 1), (REPLY_STATUS_ENDED, 1)]
    assert statuses(client) == ended
    assert statuses(router.connected(ALICE, user="y")) == []
    if is_lost:
        worker.detach()
    else:
        worker.settle(1)
    router.run()
    assert statuses(client) == ended
    check_all(router.core, router.log, at_rest=True)


def test_a_second_withdrawal_that_fails_to_commit_does_not_undo_the_first() -> None:
    router, client, worker = asked()
    router.frame(client, cancel={"client_id": "q1"})
    router.run()
    router.frame(client, cancel={"client_id": "q1"})
    router.write()
    router.report_commit()
    router.carry()
    router.fail()
    worker.detach()
    other = Streaming(router)
    router.run()
    assert not other.given


def test_a_failing_conversation_does_not_delay_another() -> None:
    router, _, worker = asked()
    worker.settle(1, retry={})
    other = router.connected(ROOM, user="y")
    router.say(other, "question")
    router.run()
    worker.read()
    assert list(worker.worker.held) == [2]


def test_the_conversation_is_notified_of_a_message_that_is_settled_without_a_reply() -> None:
    router, client, worker = asked()
    worker.settle(1)
    router.run()
    assert statuses(client) == [(REPLY_STATUS_ENDED, 0)]
    router.say(client, "again")
    router.run()
    worker.read()
    worker.settle(2, "answer")
    router.run()
    assert statuses(client) == [(REPLY_STATUS_ENDED, 0)]


@pytest.mark.parametrize("is_held", [True, False])
def test_the_conversation_is_notified_of_a_message_that_is_withdrawn_without_a_reply(is_held: bool) -> None:
    router, client, worker = asked()
    if not is_held:
        worker.detach()
        router.run()
    router.frame(client, cancel={"client_id": "q1"})
    router.run()
    assert statuses(client)[-1] == (REPLY_STATUS_ENDED, 0 if is_held else 1)
    if is_held:
        worker.settle(1)
        router.run()
        assert statuses(client) == [(REPLY_STATUS_ENDED, 0)]


def test_the_withdrawal_of_a_message_without_a_worker_is_notified_once() -> None:
    router = Router()
    client, other = router.connected(ALICE, user="x"), router.connected(ALICE, user="y")
    router.say(client, "question", ident="q1")
    router.run()
    for _ in range(2):
        router.frame(client, cancel={"client_id": "q1"})
        router.run()
    assert statuses(client) == statuses(other) == [(REPLY_STATUS_ENDED, 0)]
    check_all(router.core, router.log, at_rest=True)
