"""Exchanges of chat completions: what they send, and how they end."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import CONVERSATION_KIND_PERSON, Address, Conversation, Position
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import (
    REPLY_STATUS_ENDED,
    AckFrame,
    ClientFrame,
    ConnectedFrame,
    DeltaFrame,
    HistoryPageFrame,
    ReplyStatusFrame,
    ServerFrame,
)
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_ENDED,
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_EXPIRED,
    MESSAGE_STATE_FAILED,
    MESSAGE_STATE_OPEN,
    ROLE_AGENT,
    ROLE_USER,
    Author,
    Change,
    Message,
)
from trunkline.v1.tenant_pb2 import AGENT_MEDIA_ANY, OPENNESS_ANYBODY, AgentSettings
from trunkline_edge.dialects.dialect import ConnectPlan, HttpRequest
from trunkline_edge.dialects.exchange import Exchange
from trunkline_edge.dialects.openai.completion_routes import make
from trunkline_edge.dialects.tenant_policies import TenantPolicies
from trunkline_runtime.refusals import closing_frame, error_frame

from tests.support.declared_tenants import policy
from tests.support.event_source import EventReader

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CHAT = Address(
    tenant="t",
    agent="echo",
    platform="openai",
    conversation=Conversation(kind=CONVERSATION_KIND_PERSON, id="»c"),
)
SAID = {"role": "user", "content": "hi"}
EARLIER = {"role": "assistant", "content": "before"}

POLICY = policy(
    "t", agents={"painter": AgentSettings(accepts=AGENT_MEDIA_ANY)}, exclude_background_tasks=True
)
POLICY.agents.extend(["echo", "painter"])


class Edge:
    """The routes of one edge, at a time that passes."""

    def __init__(self) -> None:
        self.now = NOW
        self.policy = POLICY
        self.routes = {
            (route.method, route.path.text.rpartition("/v1")[2]): route
            for route in make(lambda: self.now).exchanges
        }

    def plan(
        self, body: dict[str, Any] | bytes, path: str = "/chat/completions", **headers: str
    ) -> ConnectPlan:
        """Plan a connection for a POST."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        parameters = {"tenant": "t", "completion": "chatcmpl-r"}
        request = HttpRequest(parameters, [], named, payload, TenantPolicies([self.policy]))
        return self.routes["POST", path].connect(request)

    def call(self, *messages: dict[str, str], stream: bool = True, **headers: str) -> ConnectPlan:
        """Plan a chat completion."""
        body = {"model": "echo", "messages": list(messages) or [SAID], "stream": stream}
        return self.plan(body, **headers)


def exchange_of(plan: ConnectPlan) -> Exchange:
    assert isinstance(plan.codec, Exchange)
    return plan.codec


def sent(exchange: Exchange) -> ClientFrame:
    """The next frame for the router."""
    frame = exchange.decode(b"")
    assert isinstance(frame, ClientFrame)
    return frame


def connected() -> ServerFrame:
    frame = ServerFrame(connected=ConnectedFrame())
    frame.connected.positions.add(address=CHAT, position=Position(epoch="e", seq=5))
    return frame


def ack(seq: int = 6) -> ServerFrame:
    return ServerFrame(ack=AckFrame(id="m", message_id="q", position=Position(epoch="e", seq=seq)))


def reply(state: int = MESSAGE_STATE_OPEN, text: str = "") -> ServerFrame:
    message = Message(id="r", reply_to="q", author=Author(role=ROLE_AGENT), address=CHAT, state=state)  # type: ignore[arg-type]
    if text:
        message.parts.add().text.text = text
    return ServerFrame(message=message)


def delta(text: str) -> ServerFrame:
    return ServerFrame(delta=DeltaFrame(message_id="r", text=text))


def end(state: int) -> ServerFrame:
    return ServerFrame(change=Change(message_id="r", kind=CHANGE_KIND_ENDED, state=state))  # type: ignore[arg-type]


def page(*messages: Message, more: bool = False) -> ServerFrame:
    return ServerFrame(history=HistoryPageFrame(messages=messages, more=more))


def from_user(client_id: str, age: timedelta = timedelta(0), ident: str = "q") -> Message:
    message = Message(id=ident, author=Author(role=ROLE_USER), client_id=client_id, address=CHAT)
    message.created_at.FromDatetime(NOW - age)
    return message


def events(data: bytes) -> list[Any]:
    found = [event.data for event in EventReader().feed(data)]
    return [each if each == "[DONE]" else json.loads(each) for each in found]


# Ends


@pytest.mark.parametrize(
    ("state", "code", "status"),
    [
        (MESSAGE_STATE_FAILED, "INTERNAL", 500),
        (MESSAGE_STATE_EXPIRED, "reply_expired", 503),
        (MESSAGE_STATE_CANCELLED, "reply_cancelled", 409),
    ],
)
def test_only_a_complete_reply_ends_like_one(state: int, code: str, status: int) -> None:
    for ended, is_complete in ((MESSAGE_STATE_COMPLETE, True), (state, False)):
        streamed, whole = exchange_of(Edge().call()), exchange_of(Edge().call(stream=False))
        frames = [connected(), ack(), reply(), delta("half"), end(ended)]
        data = b"".join(map(streamed.encode, frames))
        assert streamed.is_complete
        assert (b"[DONE]" in data) is is_complete
        assert ("error" in events(data)[-1]) is not is_complete
        for frame in (connected(), ack(), reply(ended, "half")):
            whole.encode(frame)
        assert whole.answer is not None
        assert whole.answer.status == (200 if is_complete else status)
        if not is_complete:
            assert events(data)[-1]["error"]["code"] == whole.answer.body["error"]["code"] == code
            assert whole.answer.headers["x-should-retry"] == "false"


def test_a_stream_that_the_edge_must_end_ends_with_an_error() -> None:
    exchange = exchange_of(Edge().call())
    for frame in (connected(), ack(), reply()):
        exchange.encode(frame)
    data = exchange.encode(ServerFrame(closing=closing_frame(catalogue.RESTARTING.refused())))
    [error] = events(data)
    assert error["error"]["code"] == "RESTARTING"
    assert exchange.is_complete


def test_a_refusal_before_the_message_is_stored_is_a_status() -> None:
    exchange = exchange_of(Edge().call())
    exchange.encode(connected())
    refused = catalogue.RATE_LIMITED.refused(whose="ann", limit=1)
    assert exchange.encode(ServerFrame(error=error_frame(refused, "m"))) == b""
    assert exchange.refused is not None
    assert exchange.refused.entry is catalogue.RATE_LIMITED


def test_a_message_that_is_settled_without_a_reply_gets_an_empty_one_at_the_next_heartbeat() -> None:
    settled = ServerFrame(reply_status=ReplyStatusFrame(message_id="q", status=REPLY_STATUS_ENDED))
    for stream in (True, False):
        exchange = exchange_of(Edge().call(stream=stream))
        for frame in (connected(), ack(), settled):
            exchange.encode(frame)
        assert not exchange.is_decided
        data = exchange.heartbeat()
        assert exchange.is_decided
        if stream:
            assert data.endswith(b"[DONE]\n\n")
        else:
            assert exchange.answer is not None
            assert exchange.answer.body["choices"][0]["message"]["content"] == ""
        late = exchange_of(Edge().call(stream=stream))
        for frame in (connected(), settled, ack(), reply()):
            late.encode(frame)
        assert not late.heartbeat().endswith(b"[DONE]\n\n")
        assert not late.is_decided


@pytest.mark.parametrize(
    ("found", "status"), [(None, 409), (MESSAGE_STATE_COMPLETE, 200), (MESSAGE_STATE_OPEN, None)]
)
def test_a_whole_reply_that_did_not_come_after_failed_attempts_is_looked_for_in_the_log(
    found: int | None, status: int | None
) -> None:
    ended = ReplyStatusFrame(message_id="q", status=REPLY_STATUS_ENDED, attempts=1)
    exchange = exchange_of(Edge().call(stream=False))
    sent(exchange)
    for frame in (connected(), ack(), ServerFrame(reply_status=ended)):
        exchange.encode(frame)
    exchange.heartbeat()
    assert sent(exchange).history.after == Position(epoch="e", seq=6)
    exchange.encode(page(*([reply(found, "text").message] if found is not None else [])))
    answer = exchange.answer
    assert (answer.status if answer is not None else None) == status
    exchange.encode(reply(MESSAGE_STATE_COMPLETE, "text"))
    assert exchange.answer is not None
    assert exchange.answer.status == (status or 200)


# Messages to the agent


def test_a_new_conversation_gets_what_was_said_before_and_a_known_one_does_not() -> None:
    edge = Edge()
    alone = sent(exchange_of(edge.call(EARLIER, SAID))).message
    assert alone.parts[0].text.text == "hi"
    assert json.loads(alone.parts[1].custom.json) == [EARLIER]
    for history, parts in ((page(), 2), (page(from_user("other")), 1)):
        exchange = exchange_of(edge.call(EARLIER, SAID, x_conversation_id="c"))
        assert sent(exchange).history.limit == 20
        exchange.encode(connected())
        exchange.encode(history)
        assert len(sent(exchange).message.parts) == parts
    exchange = exchange_of(edge.call(SAID, x_conversation_id="c"))
    assert sent(exchange).HasField("message")


def test_a_caller_who_may_not_read_the_log_sends_the_last_message_alone() -> None:
    exchange = exchange_of(Edge().call(EARLIER, SAID, x_conversation_id="c"))
    assert sent(exchange).HasField("history")
    exchange.encode(connected())
    forbidden = catalogue.FORBIDDEN.refused(problem="no history")
    exchange.encode(ServerFrame(error=error_frame(forbidden, "exchange-history")))
    assert exchange.refused is None
    assert len(sent(exchange).message.parts) == 1


def test_a_retry_whose_search_fails_sends_no_second_message() -> None:
    exchange = exchange_of(Edge().call(x_conversation_id="c", x_stainless_retry_count="1"))
    assert sent(exchange).HasField("history")
    exchange.encode(connected())
    limited = catalogue.RATE_LIMITED.refused(whose="ann", limit=1)
    exchange.encode(ServerFrame(error=error_frame(limited, "exchange-history")))
    assert exchange.refused is not None
    assert exchange.decode(b"") is None


def test_a_retry_waits_for_the_reply_to_the_first_attempt() -> None:
    edge = Edge()
    headers = {"x_conversation_id": "c", "x_stainless_retry_count": "1"}
    first = sent(exchange_of(edge.call(x_conversation_id="c"))).message.id
    for age, is_found in ((timedelta(minutes=9), True), (timedelta(minutes=11), False)):
        exchange = exchange_of(edge.call(**headers))
        assert sent(exchange).HasField("history")
        exchange.encode(connected())
        exchange.encode(page(from_user("another"), from_user(first, age), from_user("later", ident="x")))
        assert bool(exchange.requests) is not is_found
        if is_found:
            assert exchange.encode(reply()).startswith(b"data: ")
            continue
        again = sent(exchange).message.id
        assert again != first
        assert again.rpartition("-")[0] == first.rpartition("-")[0]


def test_a_retry_gets_a_reply_that_has_ended_from_the_log() -> None:
    edge = Edge()
    first = sent(exchange_of(edge.call(x_conversation_id="c"))).message.id
    exchange = exchange_of(edge.call(x_conversation_id="c", x_stainless_retry_count="2"))
    sent(exchange)
    exchange.encode(connected())
    data = exchange.encode(page(from_user(first), reply(MESSAGE_STATE_COMPLETE, "once").message))
    assert [each["choices"][0]["delta"].get("content") for each in events(data)[:-1]] == ["", "once", None]
    assert data.endswith(b"[DONE]\n\n")
    assert exchange.is_complete


def test_a_retry_without_conversation_is_recognised_by_its_edge() -> None:
    edge = Edge()
    first = edge.call(authorization="Bearer a")
    retry = edge.call(authorization="Bearer a", x_stainless_retry_count="1")
    assert retry.chat == first.chat
    assert sent(exchange_of(retry)).HasField("history")
    others = [
        edge.call(authorization="Bearer b", x_stainless_retry_count="1"),
        edge.call(EARLIER, SAID, authorization="Bearer a", x_stainless_retry_count="1"),
        edge.call(authorization="Bearer a"),
        Edge().call(authorization="Bearer a", x_stainless_retry_count="1"),
    ]
    assert len({plan.chat for plan in others} | {first.chat}) == 5
    assert all(sent(exchange_of(plan)).HasField("message") for plan in others)
    again = edge.call(authorization="Bearer c")
    edge.now += timedelta(minutes=11)
    late = edge.call(authorization="Bearer c", x_stainless_retry_count="1")
    assert late.chat != again.chat


def test_a_stranger_is_not_given_the_conversation_of_another() -> None:
    edge = Edge()
    edge.policy = policy("t", open_to=OPENNESS_ANYBODY)
    edge.policy.agents.append("echo")
    chats = {edge.call().chat, edge.call(x_stainless_retry_count="1").chat}
    assert len(chats) == 2


def test_an_idempotency_key_names_message_and_conversation() -> None:
    plans = [Edge().call(idempotency_key="k"), Edge().call(EARLIER, SAID, idempotency_key="k")]
    assert len({plan.chat for plan in plans}) == 1
    assert len({sent(exchange_of(plan)).message.id for plan in plans}) == 1
    assert Edge().call(idempotency_key="other").chat != plans[0].chat
    with pytest.raises(Refused, match="at most 256"):
        Edge().call(idempotency_key="k" * 257)


# Callers and conversations


def test_users_and_conversations_are_ids_or_hashed() -> None:
    edge = Edge()
    plans = {
        "header": edge.call(x_conversation_id="c-1"),
        "open webui": edge.call(x_openwebui_chat_id="7c", x_openwebui_user_id="ann"),
        "temporary": edge.call(x_openwebui_chat_id="local:abc"),
        "user": edge.plan({"model": "echo", "messages": [SAID], "user": "ann@example.com"}),
        "odd user": edge.plan({"model": "echo", "messages": [SAID], "user": "a b/c:d\n" * 50}),
    }
    chats = {name: plan.chat for name, plan in plans.items()}
    assert (chats["header"], chats["open webui"], chats["user"]) == ("c-1", "7c", "user.ann@example.com")
    assert plans["open webui"].opened.user == "ann"
    assert plans["user"].opened.user == "ann@example.com"
    assert all(len(f"{plan.opened.user}»{plan.chat}") <= 128 for plan in plans.values())
    assert plans["odd user"].opened.user.startswith("h-")
    assert chats["temporary"].startswith("h-")
    assert not any(plan.names_user for plan in plans.values())
    for name in ("a b", "x" * 61, "ü", "a/b", "»"):
        with pytest.raises(Refused, match="x-conversation-id"):
            edge.call(x_conversation_id=name)


def test_a_caller_is_verified_before_it_hears_what_an_agent_cannot() -> None:
    edge = Edge()
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.example/a"}}]}
    unknown = edge.plan({"model": "no body", "messages": [SAID]})
    assert unknown.opened.address.agent == "openai"
    for plan, entry in (
        (unknown, catalogue.UNKNOWN_AGENT),
        (edge.plan({"model": "echo", "messages": [image]}), catalogue.INVALID_ARGUMENT),
    ):
        exchange = exchange_of(plan)
        assert exchange.decode(b"") is None
        assert exchange.encode(connected()) == b""
        assert exchange.refused is not None
        assert exchange.refused.entry is entry
    painter = exchange_of(edge.plan({"model": "painter", "messages": [image]}))
    assert sent(painter).message.parts[0].image.url == "https://x.example/a"


def test_a_background_task_sends_nothing() -> None:
    for stream in (False, True):
        exchange = exchange_of(Edge().call(stream=stream, x_background_task="title_generation"))
        assert exchange.decode(b"") is None
        data = exchange.encode(connected())
        assert exchange.is_complete is stream
        assert (exchange.answer is not None) is not stream
        assert (b"[DONE]" in data) is stream


def test_a_cancel_needs_the_conversation_and_names_the_reply() -> None:
    path = "/chat/completions/{completion}/cancel"
    exchange = exchange_of(Edge().plan({"model": "echo"}, path, x_conversation_id="c"))
    assert sent(exchange).cancel.message_id == "r"
    with pytest.raises(Refused, match="x-conversation-id"):
        Edge().plan({"model": "echo"}, path)
    with pytest.raises(Refused, match="model"):
        Edge().plan({}, path, x_conversation_id="c")


# Anything


@given(st.binary(max_size=400), st.lists(st.binary(max_size=60), max_size=8), st.booleans())
def test_nothing_raises_but_refusals(body: bytes, frames: list[bytes], is_valid: bool) -> None:
    edge = Edge()
    try:
        plan = edge.call(EARLIER, SAID, x_conversation_id="c") if is_valid else edge.plan(body)
    except Refused:
        return
    exchange = exchange_of(plan)
    exchange.encode(connected())
    for content in frames:
        try:
            frame = ServerFrame.FromString(content)
        except DecodeError:
            continue
        data = exchange.encode(frame)
        assert not data or data.endswith(b"\n\n")
