"""Model test: whatever streams, topics, sockets and time do, each client assembles what was published."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from trunkline.v1.edge_service_pb2 import RouterEntry
from trunkline.v1.frame_pb2 import ServerFrame, SubscribedFrame, UnsubscribedFrame
from trunkline_edge.core.connection import ConnectionState
from trunkline_edge.core.rollup import GRACE_S, GRID_S
from trunkline_edge.dialects.codec import Codec, StreamingMode

from tests.edge.core.core_harness import (
    JSON,
    PROTO,
    ack,
    connected,
    deliver,
    delta,
    ended,
    join,
    leave,
    linked_core,
    message,
    opened,
    publish,
    send,
    topic,
)
from tests.edge.core.snapshot_codec import WAYS, Shown
from tests.edge.core.stream_reader import Client, ShownReader, Stream, StreamReader

SO_FAR, WHOLE = Shown(StreamingMode.SNAPSHOTS), Shown(StreamingMode.COMPLETE)
NAMES = ("home", "other")
#: How late a window may end.
LATE_S = GRID_S + GRACE_S + 1e-9
picks = st.integers(0, 50)


class RollupModel(RuleBasedStateMachine):
    """A core, a router that streams, and clients that read."""

    def __init__(self) -> None:
        super().__init__()
        self.core = linked_core()
        self.now = 0.0
        self.clients: list[Client] = []
        self.streams: dict[str, Stream] = {}
        self.seqs = dict.fromkeys(NAMES, 0)
        self.numbers: dict[str, int] = {}
        self.last_number = 0
        #: What the next batch will hold.
        self.entries: list[RouterEntry] = []

    # Helpers

    def number(self, name: str) -> int:
        if name not in self.numbers:
            self.last_number += 1
            self.numbers[name] = self.last_number
            self.entries.append(topic(self.last_number, name, self.seqs[name]))
        return self.numbers[name]

    def next_seq(self, name: str) -> int:
        self.seqs[name] += 1
        return self.seqs[name]

    def listeners(self, name: str) -> list[Client]:
        return [client for client in self.clients if name in client.hears]

    def open_streams(self, name: str | None = None) -> list[Stream]:
        return [one for one in self.streams.values() if one.is_open and name in (None, one.name)]

    def one_of(self, pick: int) -> Stream:
        streams = self.open_streams()
        return streams[pick % len(streams)]

    def settle(self) -> None:
        """Write as the runtime does, and read as clients do."""
        for connection in list(self.core.dirty):
            client = next(one for one in self.clients if one.connection is connection)
            pending, connection.pending = connection.pending, []
            kinds = client.reader.read(b"".join(pending))
            if connection.has_backlog and kinds:
                assert kinds - {"delta"}, "to one that lags deltas alone are not written"
        self.core.dirty.clear()

    def enter(self, client: Client, name: str, ahead: list[RouterEntry] | None = None) -> None:
        """Subscribe a client to a topic, after snapshots of its open messages."""
        number = self.number(name)
        for one in self.open_streams(name):
            self.entries.append(send(client.connection, one.snapshot()))
            client.follows.add(one.ident)
        self.entries.append(join(client.connection, number))
        self.entries += ahead or []
        client.hears.add(name)

    @initialize()
    def begin(self) -> None:
        """Begin with open streams, so that fewer steps reach deep states."""
        for rollup_ms in (40, 40, 0):
            self.connect(codec=JSON, rollup_ms=rollup_ms, early=False)
            self.switch(len(self.clients) - 1)
        for name in NAMES:
            self.open(name)

    # Streams

    @rule(name=st.sampled_from(NAMES))
    def open(self, name: str) -> None:
        if len(self.open_streams(name)) < 3:
            one = Stream(f"r{len(self.streams)}", name, self.next_seq(name))
            self.entries.append(publish(self.number(name), one.snapshot().message))
            self.streams[one.ident] = one
            for client in self.listeners(name):
                client.follows.add(one.ident)

    def addition(self, one: Stream, kind: str, count: int) -> RouterEntry:
        index = len(one.tokens)
        text = "".join(one.add(kind) for _ in range(count))
        one.times |= {index + n: self.now for n in range(count)}
        entry = delta(self.number(one.name), index, text, one.ident, count)
        added = entry.publish.frame.delta
        if kind == "r":
            added.reasoning = text
        elif kind == "p":
            added.part.tool_call.arguments = text
        return entry

    @precondition(lambda self: self.open_streams())
    @rule(pick=picks, kind=st.sampled_from("tttrp"), count=st.sampled_from([1, 1, 1, 3]))
    def add(self, pick: int, kind: str, count: int) -> None:
        self.entries.append(self.addition(self.one_of(pick), kind, 1 if kind == "p" else count))

    @precondition(lambda self: self.open_streams())
    @rule(pick=picks)
    def repeat(self, pick: int) -> None:
        """The router repeats a delta."""
        one = self.one_of(pick)
        if one.times and self.listeners(one.name):
            index = max(one.times)
            self.entries.append(delta(self.number(one.name), index, one.tokens[index], one.ident))

    @precondition(lambda self: self.open_streams())
    @rule(pick=picks)
    def tell_again(self, pick: int) -> None:
        """The router repeats an open message with its text so far."""
        one = self.one_of(pick)
        self.entries.append(publish(self.number(one.name), one.snapshot().message, replayed=True))

    @precondition(lambda self: self.open_streams())
    @rule(pick=picks)
    def end(self, pick: int) -> None:
        one = self.one_of(pick)
        one.is_open = False
        self.entries.append(ended(self.number(one.name), one.ident, self.next_seq(one.name)))
        self.deliver()
        for client in self.listeners(one.name):
            assert client.reader.texts[one.ident] == "".join(one.tokens)
            assert isinstance(client.reader, StreamReader) or client.reader.next[one.ident] == len(one.tokens)
            assert client.reader.last_write.index(f"ended {one.ident}") >= 0

    @rule(name=st.sampled_from(NAMES))
    def say(self, name: str) -> None:
        seq = self.next_seq(name)
        self.entries.append(publish(self.number(name), message(name, seq)))

    # Clients

    @rule(
        codec=st.sampled_from([JSON, PROTO, SO_FAR, SO_FAR, WHOLE]),
        rollup_ms=st.sampled_from([0, 40, 40, 100]),
        early=st.booleans(),
    )
    def connect(self, codec: Codec, rollup_ms: int, early: bool) -> None:
        """A client connects; its snapshots may hold deltas that are published after it has joined."""
        if len(self.clients) == 8:
            return
        connection = opened(self.core, codec, home="home", rollup_ms=rollup_ms)
        client = Client(connection)
        self.clients.append(client)
        self.entries.append(connected(connection))
        ahead = [self.addition(one, "t", 1) for one in self.open_streams("home") if early]
        self.enter(client, "home", ahead)
        self.deliver()

    @precondition(lambda self: self.clients)
    @rule(pick=picks)
    def switch(self, pick: int) -> None:
        """A client joins or leaves the other topic."""
        client = self.clients[pick % len(self.clients)]
        if "other" in client.hears:
            self.entries.append(leave(client.connection, self.number("other")))
            answer = ServerFrame(unsubscribed=UnsubscribedFrame(id="u"))
            self.entries.append(send(client.connection, answer))
            client.hears.remove("other")
            self.deliver()
            self.is_complete(client)
            client.follows = {each for each in client.follows if self.streams[each].name == "home"}
        else:
            self.entries.append(send(client.connection, ServerFrame(subscribed=SubscribedFrame(id="s"))))
            self.enter(client, "other")

    @precondition(lambda self: any(isinstance(client.reader, ShownReader) for client in self.clients))
    @rule(pick=picks, word=st.sampled_from([*WAYS]), asks=st.booleans())
    def recode(self, pick: int, word: bytes, asks: bool) -> None:
        """A client switches to another codec, perhaps with a frame."""
        self.deliver()
        shown = [client for client in self.clients if isinstance(client.reader, ShownReader)]
        client = shown[pick % len(shown)]
        before = client.connection.codec.streaming
        frame = JSON.decode(b'{"type":"ping","id":"p"}').SerializeToString() if asks else b""
        self.core.client_frames.received(client.connection, word + frame)
        assert isinstance(client.reader, ShownReader)
        self.settle()
        if (before, WAYS[word]) == (StreamingMode.COMPLETE, StreamingMode.SNAPSHOTS):
            client.reader.unshown |= {ident for ident in client.follows if self.streams[ident].is_open}
        self.is_complete(client)

    @precondition(lambda self: self.clients)
    @rule(pick=picks)
    def go(self, pick: int) -> None:
        self.deliver()
        client = self.clients.pop(pick % len(self.clients))
        self.core.gone(client.connection)

    @precondition(lambda self: self.clients)
    @rule(pick=picks, ping=st.booleans())
    def answer(self, pick: int, ping: bool) -> None:
        """Something is sent to one client, after everything before it."""
        self.deliver()
        client = self.clients[pick % len(self.clients)]
        if ping:
            payload = b'{"type":"ping","id":"p"}'
            if client.connection.codec is not JSON:
                payload = JSON.decode(payload).SerializeToString()
            self.core.client_frames.received(client.connection, payload)
        else:
            deliver(self.core, ack(client.connection, "m"), now=self.now)
        self.settle()
        self.is_complete(client)

    @precondition(lambda self: self.clients)
    @rule(pick=picks)
    def stall(self, pick: int) -> None:
        self.deliver()
        self.clients[pick % len(self.clients)].connection.has_backlog = True

    @precondition(lambda self: any(client.connection.has_backlog for client in self.clients))
    @rule(pick=picks)
    def drain(self, pick: int) -> None:
        self.deliver()
        lagging = [client.connection for client in self.clients if client.connection.has_backlog]
        connection = lagging[pick % len(lagging)]
        connection.has_backlog = False
        self.core.backpressure.caught_up(connection)
        subscriptions = self.core.fanout.subscriptions_of(connection)
        assert not any(group.is_behind(connection) for group in subscriptions.values())
        self.settle()

    # Time and the link

    @rule()
    def deliver(self) -> None:
        entries, self.entries = self.entries, []
        deliver(self.core, *entries, now=self.now)
        self.settle()

    @rule(ms=st.integers(0, 60))
    def wait(self, ms: int) -> None:
        self.deliver()
        self.now += ms / 1000
        if self.core.next_due is not None and self.core.next_due <= self.now:
            self.core.time_passed(self.now)
        self.settle()

    @rule(meanwhile=st.booleans())
    def relink(self, meanwhile: bool) -> None:
        """The link breaks and returns; deltas streamed meanwhile are in the snapshots only."""
        self.deliver()
        self.core.link_lost()
        self.settle()
        self.core.linked()
        self.numbers.clear()
        for name in NAMES:
            for client in self.listeners(name):
                self.entries.append(join(client.connection, self.number(name)))
            for one in self.open_streams(name) if name in self.numbers else ():
                if meanwhile:
                    one.add("t")
                    self.addition(one, "t", 1)
                again = publish(self.number(name), one.snapshot().message, replayed=True)
                self.entries.append(again)
        self.deliver()

    # Invariants

    def is_complete(self, client: Client) -> None:
        for ident in client.reads_along:
            assert client.reader.texts[ident] == "".join(self.streams[ident].tokens)

    @invariant()
    def what_is_known_is_the_beginning_of_what_was_published(self) -> None:
        for client in self.clients:
            for ident, text in client.reader.texts.items():
                tokens = self.streams[ident].tokens
                assert "".join(tokens).startswith(text)
                assert text == "".join(tokens[: client.reader.next[ident]])

    @invariant()
    def nothing_waits_longer_than_its_window(self) -> None:
        if self.entries:
            return
        for client in self.clients:
            window = client.connection.rollup_ms / 1000
            latest = self.now - window - LATE_S if window else self.now
            for ident in () if client.connection.has_backlog else client.reads_along:
                one = self.streams[ident]
                due = [index for index, when in one.times.items() if when <= latest]
                assert client.reader.next[ident] > max(due, default=-1)

    @invariant()
    def the_tables_hold_nobody_who_is_gone(self) -> None:
        if self.entries:
            return
        rollup = self.core.fanout.rollup
        waiting = {audience for bucket in rollup._due.values() for audience in bucket}
        assert not rollup._fresh
        known = self.core.fanout._topics.values()
        audiences = {audience for each in known for audience in each.groups.values()}
        assert waiting <= audiences
        there = {client.connection for client in self.clients}
        for audience in audiences:
            assert audience.subscribers
            assert audience.subscribers <= there
            assert {*audience.offsets, *audience.skips} <= audience.subscribers
            assert (audience.due is not None) == (audience in waiting)
            assert audience.waiting_bytes == 0 or audience.due is not None
            if not audience.offsets and audience.due is None:
                assert not audience.deltas
        for each in known:
            assert set(each.open_messages) <= {one.ident for one in self.open_streams()}
            assert each.head.seq <= max(self.seqs.values())
            assert not each.groups or each.pending == []
            shown = [one for one in each.subscribers() if isinstance(one.codec, Shown)]
            assert (each.snapshots is not None) == bool(shown)
            assert set(each.snapshots._snapshots if each.snapshots else ()) <= {*each.open_messages}

    def teardown(self) -> None:
        self.deliver()
        for client in self.clients:
            if client.connection.has_backlog:
                client.connection.has_backlog = False
                self.core.backpressure.caught_up(client.connection)
        self.core.time_passed(self.now + 1)
        self.settle()
        assert self.core.next_due is None
        for client in self.clients:
            assert client.connection.state is ConnectionState.OPEN
            self.is_complete(client)


def test_each_client_puts_together_what_was_published() -> None:
    run_state_machine_as_test(
        RollupModel,
        settings=settings(max_examples=200, stateful_step_count=50, deadline=None, database=None),
    )
