"""A session over a wire that loses frames and breaks."""

from __future__ import annotations

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st
from trunkline.v1.address_pb2 import TopicPosition
from trunkline.v1.frame_pb2 import ClientFrame, ConnectedFrame, ReadFrame, ServerFrame
from trunkline.v1.message_pb2 import CHANGE_KIND_ENDED, MESSAGE_STATE_OPEN, Change, Message
from trunkline_client.effects import CompleteRequest, DropConnection, Send
from trunkline_client.session import Session

from tests.clients.scripted_edge import ALICE, at, message
from tests.clients.session_frames import acked, entries, kinds, message_frame, ours


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
