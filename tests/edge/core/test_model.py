"""Model test: whatever clients, router and link do, each connection receives what a plain model predicts."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from trunkline.v1.edge_service_pb2 import LinkRequest, RouterEntry
from trunkline_edge.core.connection import Connection, ConnectionState
from trunkline_edge.core.effects import PauseReading, RejectConnection, ResumeReading
from trunkline_edge.core.uplink import ENTRY_BYTES

from tests.edge.core.core_harness import (
    JSON,
    PROTO,
    ack,
    close,
    connected,
    deliver,
    heard,
    join,
    leave,
    linked_core,
    message,
    opened,
    publish,
    say,
    taken,
    topic,
)

UNANSWERED = 3
NAMES = ("home", "one", "two")
#: Distance between the first seqs of topics, which tells their messages apart.
APART = 1_000_000
picks = st.integers(0, 50)


class Client:
    """The model's state of one client."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.got: list[str] = []
        self.expected: list[str] = []
        self.hears: set[str] = set()
        #: Requests without an answer, in order.
        self.asked: list[str] = []
        self.asked_ever = 0
        #: Those that went to the router on this link.
        self.forwarded: list[str] = []


def without_other_topics(heard: list[str], name: str) -> list[str]:
    """Leave out messages of other topics: their order among each other is not promised."""
    first = NAMES.index(name) * APART
    of_others = {
        text
        for text in heard
        if text.startswith("message ") and not first < int(text.split()[1]) < first + APART
    }
    return [text for text in heard if text not in of_others]


class EdgeModel(RuleBasedStateMachine):
    """A core, its router, and a model of its clients."""

    def __init__(self) -> None:
        super().__init__()
        self.core = linked_core(unanswered=UNANSWERED, uplink_bytes=2000)
        self.clients: dict[int, Client] = {}
        self.held: set[Connection] = set()
        self.up = True
        self.seqs = {name: index * APART for index, name in enumerate(NAMES)}
        self.numbers: dict[str, int] = {}
        self.next_number = 1
        #: Entries of the next batch; `deliver` passes them to the core.
        self.entries: list[RouterEntry] = []
        self.router_knows: set[int] = set()

    # Helpers

    def settle(self) -> None:
        """Carry out effects and writes as the runtime does, and check invariants of the effects."""
        core = self.core
        for effect in core.effects:
            if isinstance(effect, PauseReading):
                assert effect.connection not in self.held
                self.held.add(effect.connection)
            elif isinstance(effect, ResumeReading):
                self.held.remove(effect.connection)
            elif isinstance(effect, RejectConnection):
                effect.connection.pending.append(effect.data)
                self.clients[effect.connection.number].got += heard(effect.connection)
        for connection in core.dirty:
            assert connection.number in core.connections
            self.clients[connection.number].got += [text for text in heard(connection) if text]
        core.effects.clear()
        core.dirty.clear()

    def of_state(self, *states: ConnectionState) -> list[Client]:
        return [client for client in self.clients.values() if client.connection.state in states]

    def known(self, client: Client) -> bool:
        return client.connection.number in self.router_knows

    def number(self, name: str) -> int:
        """Return the topic's number on this link, assigning one if necessary."""
        if name not in self.numbers:
            self.numbers[name] = self.next_number
            self.entries.append(topic(self.next_number, name, self.seqs[name]))
            self.next_number += 1
        return self.numbers[name]

    def read(self, batches: list[LinkRequest]) -> None:
        for one in batches:
            for entry in one.entries:
                concerned = getattr(getattr(entry, entry.WhichOneof("entry") or ""), "connection", 0)
                if concerned and concerned not in self.clients:
                    continue
                if entry.HasField("opened"):
                    self.router_knows.add(entry.opened.connection)
                    client = self.clients[entry.opened.connection]
                    if client.connection.state is ConnectionState.CLOSING:
                        continue
                    assert entry.opened.restored == (client.connection.state is ConnectionState.OPEN)
                    if entry.opened.restored:
                        names = {"home", *(each.id for each in entry.opened.groups)}
                        assert names == client.hears
                        for name in sorted(names):
                            self.entries.append(join(client.connection, self.number(name)))
                elif entry.HasField("frame"):
                    self.clients[entry.frame.connection].forwarded.append(entry.frame.frame.message.id)
                elif entry.HasField("topic"):
                    name = entry.topic.address.conversation.id
                    assert entry.topic.position.seq == self.seqs[name]

    # Clients

    @rule(proto=st.booleans())
    def connect(self, proto: bool) -> None:
        connection = opened(self.core, PROTO if proto else JSON, home="home")
        self.clients[connection.number] = Client(connection)
        self.settle()

    @precondition(lambda self: self.of_state(ConnectionState.OPEN))
    @rule(pick=picks, again=st.booleans(), size=st.sampled_from([1, 1500]))
    def ask(self, pick: int, again: bool, size: int) -> None:
        clients = self.of_state(ConnectionState.OPEN)
        client = clients[pick % len(clients)]
        if client.connection in self.held:
            return
        if client.connection.codec is PROTO:
            payload = JSON.decode(say(f"m{client.asked_ever}", "x" * size)).SerializeToString()
        else:
            payload = say(f"m{client.asked_ever}", "x" * size)
        client.asked.append(f"m{client.asked_ever}")
        client.asked_ever += 1
        self.core.client_frames.received(client.connection, payload)
        if again:
            self.core.client_frames.received(client.connection, payload)
        self.settle()

    @precondition(lambda self: self.of_state(ConnectionState.OPEN))
    @rule(pick=picks)
    def disconnect(self, pick: int) -> None:
        clients = self.of_state(ConnectionState.OPEN)
        client = clients[pick % len(clients)]
        self.deliver()
        if client.connection in self.held or client.connection.state is not ConnectionState.OPEN:
            return
        payload = b'{"type":"disconnect"}'
        if client.connection.codec is PROTO:
            payload = JSON.decode(payload).SerializeToString()
        self.core.client_frames.received(client.connection, payload)
        client.expected.append("closing")
        self.settle()

    @precondition(lambda self: self.clients)
    @rule(pick=picks)
    def go(self, pick: int) -> None:
        self.deliver()
        numbers = list(self.clients)
        client = self.clients.pop(numbers[pick % len(numbers)])
        self.core.gone(client.connection)
        self.held.discard(client.connection)
        self.router_knows.discard(client.connection.number)
        self.settle()

    # The router

    @precondition(lambda self: self.up)
    @rule(pick=picks)
    def accept(self, pick: int) -> None:
        waiting = [
            client
            for client in self.of_state(ConnectionState.OPENING)
            if self.known(client) and not client.hears
        ]
        if not waiting:
            return
        client = waiting[pick % len(waiting)]
        number = self.number("home")
        self.entries += [connected(client.connection), join(client.connection, number)]
        client.expected.append("connected")
        client.hears.add("home")

    @precondition(lambda self: self.up)
    @rule(pick=picks, name=st.sampled_from(NAMES[1:]))
    def switch(self, pick: int, name: str) -> None:
        """A client joins or leaves a group."""
        clients = [client for client in self.of_state(ConnectionState.OPEN) if self.known(client)]
        if not clients:
            return
        client = clients[pick % len(clients)]
        number = self.number(name)
        if name in client.hears:
            self.entries.append(leave(client.connection, number))
        else:
            self.entries.append(join(client.connection, number))
        client.hears ^= {name}

    @precondition(lambda self: self.up)
    @rule(name=st.sampled_from(NAMES), pick=st.none() | picks, known=st.booleans())
    def publish(self, name: str, pick: int | None, known: bool) -> None:
        number = self.number(name)
        self.seqs[name] += 1
        listeners = [client for client in self.clients.values() if name in client.hears]
        author = listeners[pick % len(listeners)] if listeners and pick is not None else None
        but = author.connection if author else None
        self.entries.append(publish(number, message(name, self.seqs[name]), but))
        for client in listeners:
            if client is not author and client.connection.state is not ConnectionState.CLOSING:
                client.expected.append(f"message {self.seqs[name]}")

    @precondition(lambda self: self.up)
    @rule(pick=picks)
    def answer(self, pick: int) -> None:
        asking = [c for c in self.of_state(ConnectionState.OPEN) if set(c.asked) & set(c.forwarded)]
        if not asking:
            return
        client = asking[pick % len(asking)]
        ident = next(ident for ident in client.forwarded if ident in client.asked)
        client.asked.remove(ident)
        self.entries.append(ack(client.connection, ident))
        client.expected.append(f"ack {ident}" if client.connection.codec is JSON else "ack")

    @precondition(lambda self: self.up)
    @rule(pick=picks)
    def close(self, pick: int) -> None:
        clients = [
            client
            for client in self.of_state(ConnectionState.OPEN, ConnectionState.OPENING)
            if self.known(client)
        ]
        if not clients:
            return
        client = clients[pick % len(clients)]
        self.entries.append(close(client.connection))
        client.expected.append("closing")
        self.deliver()

    @rule()
    def deliver(self) -> None:
        """Deliver everything that the router has sent, as one batch."""
        entries, self.entries = self.entries, []
        if self.up:
            deliver(self.core, *entries)
            self.settle()

    @precondition(lambda self: self.up)
    @rule()
    def take(self) -> None:
        """The router receives what waits for it."""
        self.read(taken(self.core.uplink))
        self.core.uplink.credit = 0
        self.core.batch_sent()
        self.settle()

    @precondition(lambda self: self.up)
    @rule()
    def lose_link(self) -> None:
        self.deliver()
        self.up = False
        self.core.link_lost()
        self.settle()
        self.router_knows.clear()
        self.numbers.clear()
        for client in self.clients.values():
            client.forwarded.clear()

    @precondition(lambda self: not self.up)
    @rule()
    def link(self) -> None:
        self.up = True
        self.core.linked()
        self.take()
        self.deliver()
        for client in self.of_state(ConnectionState.OPEN):
            assert client.forwarded == client.asked

    # Invariants

    @invariant()
    def nothing_is_told_but_what_the_router_and_the_edge_said(self) -> None:
        if self.entries:
            return
        for client in self.clients.values():
            got = [text.split()[0] if text.startswith("closing") else text for text in client.got]
            for name in NAMES:
                assert without_other_topics(got, name) == without_other_topics(client.expected, name)

    @invariant()
    def who_is_held_has_a_reason(self) -> None:
        for client in self.clients.values():
            connection = client.connection
            assert connection.reading_paused == (connection in self.held)
            if connection.state is ConnectionState.CLOSING:
                assert not connection.reading_paused
            elif connection.state is ConnectionState.OPEN and len(connection.unanswered) >= UNANSWERED:
                assert connection.reading_paused

    @invariant()
    def what_was_asked_and_not_answered_is_kept(self) -> None:
        if self.entries:
            return
        for client in self.of_state(ConnectionState.OPEN):
            connection = client.connection
            assert list(connection.unanswered) == client.asked
            assert connection.unanswered_bytes == sum(size for _, size in connection.unanswered.values())

    @invariant()
    def bytes_and_sets_are_right(self) -> None:
        core = self.core
        batches = [*core.uplink._closed, (core.uplink._open, 0)]
        entries = sum(len(one.entries) for one, _ in batches)
        assert core.uplink.waiting_bytes >= entries * ENTRY_BYTES
        assert (core.uplink.waiting_bytes == 0) == (entries == 0)
        assert set(core.connections) == set(self.clients)
        assert core.throttle.waiting_for_uplink <= set(core.connections.values())
        assert core.sessions.opening == len(self.of_state(ConnectionState.OPENING))
        for known in [*core.fanout._topics.values(), *core.fanout._orphans.values()]:
            assert all(
                c.number in core.connections and c.state is ConnectionState.OPEN for c in known.subscribers()
            )
            assert known.pending == []


def test_the_core_does_as_the_model() -> None:
    run_state_machine_as_test(
        EdgeModel, settings=settings(max_examples=120, stateful_step_count=40, deadline=None, database=None)
    )


def test_a_client_accepted_between_two_batches_gets_each_topic_in_order() -> None:
    model = EdgeModel()
    model.connect(False)
    model.connect(False)
    model.take()
    model.accept(0)
    model.deliver()
    model.switch(0, "one")
    model.publish("one", None, True)
    model.publish("home", None, True)
    model.publish("one", None, True)
    model.accept(0)
    model.deliver()
    assert [len(client.expected) for client in model.clients.values()] == [4, 1]
    model.nothing_is_told_but_what_the_router_and_the_edge_said()
