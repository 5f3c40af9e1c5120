"""The session: pure, without a socket or an event loop."""

from __future__ import annotations

import pytest
from trunkline.v1.address_pb2 import Position, TopicPosition
from trunkline.v1.frame_pb2 import (
    SIGNAL_END_EXPIRED,
    SIGNAL_END_LEFT,
    ClientFrame,
    ErrorFrame,
    ServerFrame,
    SignalFrame,
    SubscribedFrame,
    SubscribeFrame,
    UnsubscribeFrame,
)
from trunkline.v1.message_pb2 import ROLE_USER, Author
from trunkline_client.effects import CompleteRequest, DropConnection, Emit, FailRequest, Send, SetPosition
from trunkline_client.events import GroupLeft, MessagesLost
from trunkline_client.session import Session

from tests.clients.scripted_edge import ALICE, TEAM, at, message
from tests.clients.session_frames import acked, connect, emitted, kinds, message_frame, ours, receive


def test_a_new_session_resumes_nothing() -> None:
    assert Session(ALICE).first_frames() == []


def test_nothing_is_sent_before_connected() -> None:
    session = Session(ALICE)
    assert session.request("x", message_frame("x")) == []
    assert connect(session)[-1] == Send(message_frame("x"))


def test_the_id_of_a_pending_request_cannot_be_reused() -> None:
    session = Session(ALICE)
    session.request("x", message_frame("x"))
    with pytest.raises(ValueError, match="not answered yet"):
        session.request("x", message_frame("x"))


def test_pending_requests_are_resent_in_order() -> None:
    session = Session(ALICE)
    connect(session)
    for each in "abc":
        session.request(each, message_frame(each))
    session.receive(acked("b", 1))
    sent = [effect.frame.message.id for effect in connect(session, 1) if isinstance(effect, Send)]
    assert sent == ["a", "c"]


def test_a_request_given_up_is_not_resent_but_its_ack_still_counts() -> None:
    session = Session(ALICE)
    connect(session)
    session.request("x", message_frame("x"))
    session.give_up("x")
    assert session.receive(acked("x", 1)) == [SetPosition(ALICE, at(1))]
    assert kinds(receive(session, message(2))) == [Emit, SetPosition]


def test_a_lost_connection_ends_the_signals_that_live() -> None:
    session = Session(ALICE)
    connect(session)
    for name, ttl_ms, end in (
        ("typing", 5000, 0),
        ("typing", 3000, 0),
        ("looking", 5000, 0),
        ("looking", 0, SIGNAL_END_LEFT),
        ("waving", 0, 0),
    ):
        signal = SignalFrame(name=name, user="bob", ttl_ms=ttl_ms, end=end)  # type: ignore[arg-type]
        assert session.receive(ServerFrame(signal=signal)) == [Emit(signal)]
    ended = SignalFrame(name="typing", user="bob", end=SIGNAL_END_EXPIRED)
    ended.conversation.SetInParent()
    assert session.disconnect() == [Emit(ended)]
    assert session.disconnect() == []


def test_an_ack_advances_the_position() -> None:
    session = Session(ALICE)
    connect(session)
    session.request("x", message_frame("x"))
    assert kinds(session.receive(acked("x", 1))) == [CompleteRequest, SetPosition]
    assert emitted(receive(session, message(2))) == [2]


def test_a_hole_is_a_gap_if_no_pending_request_can_fill_it() -> None:
    session = Session(ALICE)
    connect(session)
    assert kinds(receive(session, message(2))) == [DropConnection]
    assert session.first_frames()[0].resume.positions[0].position == at(0)


def test_a_hole_may_be_a_late_ack() -> None:
    session = Session(ALICE)
    connect(session)
    session.request("x", message_frame("x"))
    effects = receive(session, message(2), message(3))
    assert emitted(effects) == [2, 3]
    start = SetPosition(ALICE, Position(epoch="e1"))
    assert effects[-1] == start, "the position stays before the hole until the ack arrives"
    assert session.receive(acked("x", 1))[-1] == SetPosition(ALICE, at(3))


def test_a_hole_is_a_gap_once_our_message_is_rejected() -> None:
    session = Session(ALICE)
    connect(session)
    session.request("x", message_frame("x"))
    receive(session, message(2))
    error = ErrorFrame(id="x", code="OVERLOADED")
    assert kinds(session.receive(ServerFrame(error=error))) == [FailRequest, DropConnection]


def test_messages_beyond_a_hole_are_emitted_once_across_a_resume() -> None:
    session = Session(ALICE)
    connect(session)
    session.request("x", message_frame("x"))
    receive(session, message(2))
    connect(session, 0, recovered=True)
    effects = receive(session, ours("x", 1), message(2), message(3))
    assert emitted(effects) == [3]
    assert kinds(effects)[0] is CompleteRequest


def test_only_a_message_by_a_user_to_the_same_conversation_counts_as_our_own() -> None:
    session = Session(ALICE)
    connect(session)
    session.request("x", message_frame("x"))
    by_agent = message(1, client_id="x")
    elsewhere = message(1, client_id="x", to=TEAM, author=Author(role=ROLE_USER))
    assert emitted(receive(session, by_agent, elsewhere)) == [1, 1]


def test_a_new_epoch_is_reported_as_a_loss() -> None:
    session = Session(ALICE)
    connect(session, 5)
    lost, *rest = receive(session, message(1, epoch="e2"))
    start = TopicPosition(address=ALICE, position=Position(epoch="e2"))
    assert lost == Emit(MessagesLost((start,)))
    assert emitted(rest) == [1]
    assert kinds(receive(session, message(3, epoch="e3"))) == [DropConnection]


def test_a_new_epoch_that_continues_is_no_loss() -> None:
    session = Session(ALICE)
    connect(session, 4)
    assert emitted(receive(session, message(5, epoch="e2"), message(6, epoch="e2"))) == [5, 6]
    assert kinds(receive(session, message(8, epoch="e3"))) == [DropConnection]


def test_unlogged_messages_are_emitted_without_a_position() -> None:
    session = Session(ALICE)
    connect(session)
    fleeting = message(1)
    fleeting.ClearField("position")
    assert receive(session, fleeting) == [Emit(fleeting)]


def test_a_rejection_without_an_id_is_emitted() -> None:
    session = Session(ALICE)
    connect(session)
    error = ErrorFrame(code="NOT_SUBSCRIBED", message="no")
    assert session.receive(ServerFrame(error=error)) == [Emit(error)]


def test_every_kind_of_server_frame_has_a_handler() -> None:
    kinds_of_frame = {field.name for field in ServerFrame.DESCRIPTOR.oneofs_by_name["frame"].fields}
    assert set(Session(ALICE)._handlers) == kinds_of_frame


def test_a_frame_that_is_newer_than_this_client_has_no_effect() -> None:
    assert Session(ALICE).receive(ServerFrame()) == []


def joined(session: Session, seq: int) -> None:
    """Joins the team's group."""
    frame = SubscribeFrame(id="join", conversation=TEAM.conversation)
    session.request("join", ClientFrame(subscribe=frame))
    session.receive(ServerFrame(subscribed=SubscribedFrame(id="join", address=TEAM, position=at(seq))))


def test_a_reconnect_completes_leaving_a_group() -> None:
    session = Session(ALICE)
    connect(session)
    joined(session, 3)
    frame = UnsubscribeFrame(id="leave", conversation=TEAM.conversation)
    session.request("leave", ClientFrame(unsubscribe=frame))
    effects = connect(session)
    assert CompleteRequest in kinds(effects)
    assert Send not in kinds(effects)


def test_a_temporary_rejection_of_a_rejoin_drops_the_connection() -> None:
    session = Session(ALICE)
    connect(session)
    joined(session, 3)
    (rejoin,) = [effect.frame.subscribe for effect in connect(session) if isinstance(effect, Send)]
    error = ErrorFrame(id=rejoin.id, code="ROUTER_UNAVAILABLE", retryable=True)
    assert kinds(session.receive(ServerFrame(error=error))) == [DropConnection]


def test_a_final_rejection_of_a_rejoin_is_reported_and_forgotten() -> None:
    session = Session(ALICE)
    connect(session)
    joined(session, 3)
    (rejoin,) = [effect.frame.subscribe for effect in connect(session) if isinstance(effect, Send)]
    error = ErrorFrame(id=rejoin.id, code="CONVERSATION_FORBIDDEN", message="no")
    assert session.receive(ServerFrame(error=error))[0] == Emit(
        GroupLeft(TEAM, "CONVERSATION_FORBIDDEN", "no")
    )
    assert Send not in kinds(connect(session))


def test_a_rejoin_that_does_not_recover_is_reported_as_a_loss() -> None:
    session = Session(ALICE)
    connect(session)
    joined(session, 3)
    (rejoin,) = [effect.frame.subscribe for effect in connect(session) if isinstance(effect, Send)]
    assert rejoin.position == at(3)
    again = SubscribedFrame(id=rejoin.id, address=TEAM, position=at(9))
    effects = session.receive(ServerFrame(subscribed=again))
    position = TopicPosition(address=TEAM, position=at(9))
    assert effects == [Emit(MessagesLost((position,))), SetPosition(TEAM, at(9))]
