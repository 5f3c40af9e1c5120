"""Model of streamed replies beside a router: accepted deltas, promised durability, and ends."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from trunkline.v1.agent_service_pb2 import ReplyDeltas
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import CancelledFrame
from trunkline.v1.message_pb2 import CHANGE_KIND_ENDED, ROLE_AGENT, Message
from trunkline_router.core.replies.streamed_message import StreamedMessage
from trunkline_router.core.values.log_records import EntryKind
from trunkline_router.core.values.topics import EMPTY, TopicKey, topic_of

from tests.router.core.harness.client import OPEN, RECALLED, Client, text_of
from tests.router.core.harness.invariants import check_all
from tests.router.core.harness.producers import CANCELLED, Producing, Streaming
from tests.router.core.harness.router import ALICE, ROOM, Router

TOPICS = [ALICE, ROOM]


class World:
    """Router, workers, backends and clients, with the expected state of each message."""

    def __init__(self, peeks: bool) -> None:
        self.router = Router(peeks=peeks, max_attempts=2, max_open_messages=8)
        self.workers: list[Streaming] = []
        self.backends: list[Producing] = []
        self.clients: list[Client] = []
        #: By message id: accepted deltas, and how many of them are promised to be durable.
        self.accepted: dict[str, list[str]] = defaultdict(list)
        self.promised: dict[str, int] = defaultdict(int)
        #: By message id: its one end.
        self.ends: dict[str, int] = {}
        #: By message id: topic and head of its log when a cancel was answered, after which no reply follows.
        self.prevented: dict[str, tuple[TopicKey, int]] = {}
        #: Deliveries that are on their way out of the log without a settlement.
        self.leaving: set[int] = set()
        self.seen: dict[Client, int] = defaultdict(int)
        self.asked: dict[str, str] = {}
        self.router.edge("e1")
        self.router.edge("e2")

    def sync(self) -> None:
        """Everybody reads; reports are compared with the model."""
        self.router.carry()
        for streaming in self.workers:
            given = set(streaming.given)
            streaming.read()
            for number in streaming.given.keys() - given:
                self._given(streaming, number)
            for progress in streaming.progress:
                self._progress(streaming, progress)
            streaming.progress.clear()
            self._ended(streaming)
        for client in self.clients:
            for frame in client.frames[self.seen[client] :]:
                if frame.HasField("cancelled"):
                    self._cancelled(frame.cancelled)
            self.seen[client] = len(client.frames)

    def _given(self, streaming: Streaming, number: int) -> None:
        """Check a delivery: nothing else of its conversation is leased or must come first."""
        log = self.router.log
        message, attempt = streaming.given[number]
        key = topic_of(message.address)
        assert attempt <= 2, "a delivery has too many attempts"
        leased = [n for w in self.workers for n, h in w.worker.held.items() if h.delivery.topic == key]
        assert leased in ([], [number])
        withdrawing = self.router.core.agent_queues.withdrawing
        for other, delivery in log.unsettled.items():
            if delivery.topic == key and other < number and other not in self.leaving:
                assert Message.FromString(delivery.message).id in withdrawing, "out of order"
        now = streaming.worker.held.get(number)
        is_off = now is None or now.is_cancelled or number in self.leaving
        assert number in log.unsettled or is_off, "a settled delivery is repeated"

    def _progress(self, streaming: Streaming, progress: Any) -> None:
        opened = streaming.opened.get(progress.reply)
        if opened is None or progress.HasField("error"):
            return
        message_id = opened.message.id
        assert progress.durable_index <= progress.next_index == len(self.accepted[message_id])
        stored = self.router.log.open.get(message_id)
        assert stored is None or progress.durable_index <= sum(map(count_of, stored.deltas))
        self.promised[message_id] = max(self.promised[message_id], progress.durable_index)

    def _ended(self, streaming: Streaming) -> None:
        for number, ended in streaming.ended.items():
            if ended.state and number in streaming.opened:
                self.note_end(streaming.opened[number].message.id, ended.state)

    def _cancelled(self, answer: CancelledFrame) -> None:
        """Check an answer to a cancel: each reply has ended in the reported state."""
        assert not (answer.prevented and answer.replies)
        for reply in answer.replies:
            assert reply.state != OPEN
            self.note_end(reply.message_id, reply.state)
        message_id = self.asked.get(answer.id, "")
        if (answer.prevented or answer.replies) and message_id not in self.prevented:
            message = self.stored(message_id)
            if message is not None:
                key = topic_of(message.address)
                self.prevented[message_id] = key, self.router.log.head(key).seq

    def note_end(self, message_id: str, state: int) -> None:
        """An end was reported: it is on disk, and no other end was ever reported."""
        stored = self.stored(message_id)
        if stored is not None and RECALLED not in (state, stored.state):
            assert stored.state == state, f"{message_id} is {stored.state}, but {state} was reported"
            assert self.ends.setdefault(message_id, state) == state, "it has ended in two ways"

    def stored(self, message_id: str) -> Message | None:
        """Return a message from the log."""
        body = self.router.log.message("t", message_id)
        return None if body is None else Message.FromString(body)

    def messages(self, key: TopicKey) -> list[Message]:
        """Return the messages of a log."""
        entries = self.router.log.logs.get(key, ("", []))[1]
        return [Message.FromString(body) for kind, body in entries if kind is EntryKind.MESSAGE]

    # Adding

    def add_to(self, message: StreamedMessage, index: int, text: str) -> str:
        """Return the expected result of a delta from an open message's producer; record it if accepted."""
        if message.ended is not None:
            return "dropped"
        accepted = self.accepted[message.id]
        if index == len(accepted):
            accepted.append(text)
            return "taken"
        return "repeated" if index < len(accepted) else "DELTA_GAP"

    def worker_adds(self, streaming: Streaming, number: int, step: int, text: str) -> None:
        """A worker extends one of its replies, which another may have taken over."""
        message = streaming.replies.current.get(number)
        opened = streaming.opened.get(number)
        index = max(0, step + (len(self.accepted[opened.message.id]) if opened is not None else 0))
        if message is not None:
            expected = self.add_to(message, index, text)
        else:
            known = streaming.replies.ended.get(number)
            fenced = "PRODUCER_FENCED" if known is not None and known.state == OPEN else "MESSAGE_ENDED"
            expected = "REPLY_NOT_OPENED" if known is None else fenced
        streaming.progress.clear()
        streaming.add(number, index, text)
        reports = [p for p in streaming.progress if p.reply == number]
        errors = [p.error.code for p in reports if p.HasField("error")]
        if expected in ("taken", "dropped", "repeated"):
            assert not errors
            assert bool(reports) or expected != "repeated", "a repeated delta is not acknowledged"
        else:
            assert errors == [expected]
        if message is not None and reports:
            assert reports[-1].next_index == len(self.accepted[message.id])

    def backend_adds(self, backend: Producing, step: int, text: str) -> None:
        """A backend extends its message."""
        assert backend.message is not None
        index = max(0, step + len(self.accepted[backend.message.id]))
        try:
            message = backend.open
        except Refused:
            return
        expected = self.add_to(message, index, text)
        if expected == "DELTA_GAP":
            with pytest.raises(Refused, match=f"expected {message.next_index}, got {index}"):
                backend.add(index, text)
        else:
            assert backend.add(index, text) == len(self.accepted[message.id])

    # Restarts and erasure

    def restart(self) -> None:
        """Restart: durable deltas are there, and messages go on from accepted prefixes."""
        self.router.restart()
        self.workers.clear()
        self.backends.clear()
        self.leaving.clear()
        for message_id, stored in self.router.log.open.items():
            count = sum(map(count_of, stored.deltas))
            assert count >= self.promised[message_id], "durable deltas are lost"
            del self.accepted[message_id][count:]
        self.check_texts()

    def erase(self, key: TopicKey) -> None:
        """Erase a log."""
        while self.router.written:
            self.router.report_commit()
        self.sync()
        self.router.reset(key)
        self.prevented = {k: p for k, p in self.prevented.items() if p[0] != key}

    # Checks

    def check_texts(self) -> None:
        """Check that each open message holds the accepted deltas."""
        core = self.router.core
        for key in TOPICS:
            for message in core.open_messages.of_topic(key):
                accepted = self.accepted[message.id]
                snapshot = message.snapshot()
                assert (text_of(snapshot), snapshot.next_index) == ("".join(accepted), len(accepted))
                assert message.id not in self.ends

    def check_ends(self) -> None:
        """Check that each message has one end in the log, with all accepted deltas."""
        for key in TOPICS:
            ended = [c for c in self.router.log.changes(key) if c.kind == CHANGE_KIND_ENDED]
            ids = [change.message_id for change in ended]
            assert len(set(ids)) == len(ids), "a message ended twice"
            for change in ended:
                assert self.ends.setdefault(change.message_id, change.state) == change.state
            changed = {c.message_id for c in self.router.log.changes(key) if c.kind != CHANGE_KIND_ENDED}
            for message in self.messages(key):
                if message.id in ids and message.id not in changed:
                    accepted = self.accepted[message.id]
                    assert text_of(message) == "".join(accepted)
                    assert message.next_index == len(accepted)
                    assert message.state == self.ends[message.id]
                promise = self.prevented.get(message.reply_to)
                if (
                    promise is not None
                    and message.author.role == ROLE_AGENT
                    and message.position.seq > promise[1]
                ):
                    assert message.state in (CANCELLED, RECALLED), "a prevented reply exists"

    def check_clients(self) -> None:
        """Check that connected clients know what core and log hold."""
        core, log = self.router.core, self.router.log
        for client in self.clients:
            if client.edge.link is None or client.state == "closed":
                continue
            assert client.state == "open", "the client is never answered"
            assert not client.unanswered
            for key in TOPICS:
                if key not in client.place or log.head(key) == EMPTY:
                    continue
                assert client.place[key] == log.head(key)
                assert {m.id for m in core.open_messages.of_topic(key)} <= client.known.keys()
            for message_id, known in client.known.items():
                is_open = core.open_messages.get(message_id)
                truth = is_open.snapshot() if is_open is not None else self.stored(message_id)
                if truth is not None:
                    assert (known.state, list(known.parts)) == (truth.state, list(truth.parts)), message_id

    def rest(self) -> None:
        """Complete everything that is under way."""
        # Cancels again what the log failed to commit.
        self.router.tick(0)
        for _ in range(50):
            self.router.run()
            self.sync()
            if self.router.is_idle:
                break
        check_all(self.router.core, self.router.log, at_rest=True)
        self.check_texts()
        self.check_ends()
        self.check_clients()


def count_of(deltas: bytes) -> int:
    """Return the number of deltas in a checkpoint."""
    return len(ReplyDeltas.FromString(deltas).deltas)
