"""The session: pure, without a socket or an event loop."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trunkline.v1.address_pb2 import Position, TopicPosition
from trunkline.v1.frame_pb2 import (
    AckFrame,
    ClientFrame,
    ConnectedFrame,
    ErrorFrame,
    MessageFrame,
    ReadFrame,
    ServerFrame,
    SubscribedFrame,
    SubscribeFrame,
    UnsubscribeFrame,
)
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_ENDED,
    MESSAGE_STATE_OPEN,
    ROLE_USER,
    Author,
    Change,
    Message,
)
from trunkline_client import builders
from trunkline_client.effects import (
    CompleteRequest,
    DropConnection,
    Effect,
    Emit,
    FailRequest,
    Send,
    SetPosition,
)
from trunkline_client.events import GroupLeft, MessagesLost
from trunkline_client.session import Session

from tests.clients.scripted_edge import ALICE, TEAM, at, message


def connect(session: Session, seq: int = 0, *, recovered: bool = False) -> list[Effect]:
    """Connects a session at a position."""
    session.disconnect()
    session.first_frames()
    positions = [TopicPosition(address=ALICE, position=at(seq))]
    return session.receive(ServerFrame(connected=ConnectedFrame(positions=positions, recovered=recovered)))


def message_frame(request_id: str) -> ClientFrame:
    """A message of the client."""
    return ClientFrame(message=MessageFrame(id=request_id, parts=builders.text("hello")))


def acked(request_id: str, seq: int) -> ServerFrame:
    """Its ack."""
    return ServerFrame(ack=AckFrame(id=request_id, message_id=f"m{seq}", position=at(seq), address=ALICE))


def ours(request_id: str, seq: int) -> Message:
    """The client's own message as a replay contains it."""
    return message(seq, client_id=request_id, author=Author(role=ROLE_USER, user="alice"))


def kinds(effects: list[Effect]) -> list[type[Any]]:
    return [type(effect) for effect in effects]


def emitted(effects: list[Effect]) -> list[int]:
    return [
        each.event.position.seq
        for each in effects
        if isinstance(each, Emit) and isinstance(each.event, Message)
    ]


def entries(effects: list[Effect]) -> list[int]:
    """Positions of all entries that are emitted."""
    found = []
    for each in effects:
        match each:
            case Emit(Message() | Change() as event):
                found.append(event.position.seq)
            case Emit(ReadFrame() as event):
                found.append(event.at.seq)
            case _:
                pass
    return found


def receive(session: Session, *messages: Message) -> list[Effect]:
    return [effect for each in messages for effect in session.receive(ServerFrame(message=each))]


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


class Router:
    """A log with one subscriber, over a wire that loses its content when it breaks."""

    def __init__(self) -> None:
        self.log: list[ServerFrame] = []
        self.ids: dict[str, int] = {}
        self.session = Session(ALICE)
        self.up: deque[ClientFrame] = deque()
        self.down: deque[ServerFrame] = deque()
        self.live = False
        self.open: Message | None = None
        self.emitted: list[int] = []
        self.answered: list[str] = []
        self.drops = 0
        self.asked = 0

    def reconnect(self) -> None:
        """Breaks the wire and makes another one."""
        self.live = False
        self.session.disconnect()
        self.down.clear()
        self.up = deque(self.session.first_frames())
        if not self.up:
            self._welcome(len(self.log), recovered=False)

    def _welcome(self, seq: int, *, recovered: bool) -> None:
        self.live = True
        positions = [TopicPosition(address=ALICE, position=at(seq))]
        self.down.append(ServerFrame(connected=ConnectedFrame(positions=positions, recovered=recovered)))
        self.down.extend(self.log[seq:])
        if self.open is not None:
            self.down.append(ServerFrame(message=self.open))

    def _commit(self, entry: ServerFrame) -> None:
        self.log.append(entry)
        if self.live:
            self.down.append(entry)

    def others_say(self) -> None:
        """Commits a message of another user."""
        self._commit(ServerFrame(message=message(len(self.log) + 1)))

    def others_read(self) -> None:
        """Commits a read position of another user."""
        read = ReadFrame(user="bob", position=at(1), at=at(len(self.log) + 1), address=ALICE)
        self._commit(ServerFrame(read=read))

    def others_begin(self) -> None:
        """Opens a message, or ends the open one."""
        position = at(len(self.log) + 1)
        if self.open is None:
            self.open = message(position.seq, state=MESSAGE_STATE_OPEN)
            self._commit(ServerFrame(message=self.open))
        else:
            change = Change(position=position, address=ALICE, message_id=self.open.id, kind=CHANGE_KIND_ENDED)
            self.open = None
            self._commit(ServerFrame(change=change))

    def ask(self) -> None:
        """The client sends a message."""
        self.asked += 1
        request_id = f"r{self.asked}"
        self.up.extend(self.session.request(request_id, message_frame(request_id)))

    def take_up(self) -> None:
        """The router receives one frame."""
        if not self.up:
            return
        frame = self.up.popleft()
        if frame.HasField("resume"):
            self._welcome(frame.resume.positions[0].position.seq, recovered=True)
            return
        request_id = frame.message.id
        if request_id not in self.ids:
            self.log.append(ServerFrame(message=ours(request_id, len(self.log) + 1)))
            self.ids[request_id] = len(self.log)
        self.down.append(acked(request_id, self.ids[request_id]))

    def take_down(self) -> None:
        """The client receives one frame."""
        if not self.down:
            return
        effects = self.session.receive(self.down.popleft())
        self.emitted += entries(effects)
        self.answered += [effect.id for effect in effects if isinstance(effect, CompleteRequest)]
        self.up.extend(effect.frame for effect in effects if isinstance(effect, Send))
        if DropConnection in kinds(effects):
            self.drops += 1
            self.reconnect()

    def lose_one(self) -> None:
        """Drops a message on its way down, which must never happen."""
        for index, frame in enumerate(self.down):
            if frame.HasField("message") and frame.message != self.open:
                del self.down[index]
                return

    def deliver_all(self) -> None:
        """Delivers all frames on the wire."""
        while self.up or self.down:
            self.take_up()
            self.take_down()

    def check(self) -> None:
        """Checks that every entry of others was emitted once and every request answered once."""
        entries = enumerate(self.log, 1)
        assert sorted(self.emitted) == [seq for seq, each in entries if not each.message.client_id]
        assert sorted(self.answered) == sorted(f"r{number + 1}" for number in range(self.asked))


STEPS = ["others_say", "others_read", "others_begin", "ask", "take_up", "take_down", "take_down", "reconnect"]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(STEPS), max_size=60))
def test_each_entry_is_emitted_once_and_in_order_whatever_the_wire_does(steps: list[str]) -> None:
    router = Router()
    router.reconnect()
    router.take_down()
    for step in steps:
        getattr(router, step)()
    router.deliver_all()
    router.reconnect()
    router.deliver_all()
    router.check()
    assert router.emitted == sorted(router.emitted)
    assert router.drops == 0, "no connection is dropped if nothing is lost"


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from([*STEPS, "lose_one"]), max_size=60))
def test_a_message_lost_on_the_wire_is_noticed_and_received_again(steps: list[str]) -> None:
    router = Router()
    router.reconnect()
    router.take_down()
    for step in steps:
        getattr(router, step)()
    router.deliver_all()
    router.reconnect()
    router.deliver_all()
    router.check()
