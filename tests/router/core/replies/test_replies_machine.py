"""State machine of streamed replies: each ends once, no accepted delta is lost, all readers agree."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from trunkline.v1.catalogue import Refused
from trunkline.v1.message_pb2 import Message
from trunkline_router.core.values.topics import Position, TopicKey

from tests.router.core.harness.client import Client, copy_of
from tests.router.core.harness.invariants import check_all
from tests.router.core.harness.producers import CANCELLED, COMPLETE, EXPIRED, FAILED, Producing, Streaming
from tests.router.core.harness.reply_model import TOPICS, World
from tests.router.core.harness.router import ALICE, ROOM

pytestmark = pytest.mark.long

EDGES = ["e1", "e2"]
KEYS = ["k1", "k2"]
STATES = [COMPLETE, COMPLETE, CANCELLED, FAILED]
#: Mostly the next delta; also a repeated one and one that leaves a gap.
INDEXES = [0, 0, 0, 0, -1, -2, 1]
#: Progress of the log after each event.
PROGRESS = [
    "",
    "",
    "write",
    "report_commit",
    "write report_commit",
    "read_log",
    "return_reads",
    "read_log return_reads",
    "write report_commit read_log return_reads",
    "rest",
]


class RepliesMachine(RuleBasedStateMachine):
    """Drives a World, which checks what it can at once; `rest` checks everything else.

    There are few rules, and each draws an action: Hypothesis disables some rules in each run, and with
    most actions disabled nothing would happen.
    """

    @initialize(peeks=st.booleans())
    def start(self, peeks: bool) -> None:
        self.world = World(peeks)
        self.router = self.world.router
        self.gone: list[tuple[dict[TopicKey, Position], dict[str, Any]]] = []
        self.published = 0
        for edge in EDGES:
            self.world.clients.append(self.router.connected(ALICE, user="x", edge=edge))
        self.attach(2)
        self.attach(1)

    def draw(self, choices: Any) -> Any:
        """Draw one of several values."""
        return self.data.draw(st.sampled_from(list(choices)))

    @rule(data=st.data())
    def client_does(self, data: Any) -> None:
        self.happens(
            data, [self.say, self.say, self.cancel, self.cancel, self.change, self.read, self.connect]
        )

    @rule(data=st.data())
    def producer_does(self, data: Any) -> None:
        self.happens(data, [self.open, self.open, self.add, self.add, self.add, self.end, self.backend])

    @rule(data=st.data())
    def work_is_done(self, data: Any) -> None:
        self.happens(data, [self.settle, self.settle, self.replay, self.leave, self.join, self.pass_time])

    @rule(data=st.data())
    def trouble(self, data: Any) -> None:
        happenings = [self.fail, self.fail_read, self.break_link, self.link, self.go, self.resume]
        self.happens(data, [*happenings, self.restart, self.reset])

    def happens(self, data: Any, happenings: list[Any]) -> None:
        """Run one of these actions, then as much progress as is drawn."""
        self.data = data
        self.draw(happenings)()
        self.world.sync()
        for step in self.draw(PROGRESS).split():
            getattr(self.world if step == "rest" else self.router, step)()
            self.world.sync()

    # Clients

    def client(self) -> Client | None:
        """Draw a client that is connected over a link."""
        found = [c for c in self.world.clients if c.state == "open" and c.edge.link is not None]
        return self.draw(found) if found else None

    def message_id(self) -> str:
        """Draw a message id, preferably a late one, or one that does not exist."""
        ids = [m.id for key in TOPICS for m in self.world.messages(key)]
        return str(self.draw([*reversed(ids), "e9-1"]))

    def connect(self) -> None:
        """A client connects."""
        home, user, edge = self.draw([ALICE, ALICE, ROOM]), self.draw("xy"), self.draw(EDGES)
        self.world.clients.append(self.router.open(home, user=user, edge=edge))

    def go(self) -> None:
        """A client disconnects."""
        if client := self.client():
            place = {key: at for key, at in client.place.items() if key in TOPICS}
            self.gone.append((place, client.known))
            self.router.close(client)

    def resume(self) -> None:
        """A client reconnects and resumes."""
        if not self.gone:
            return
        place, known = self.draw(self.gone)
        client = self.router.edge(self.draw(EDGES)).new_client(ROOM if ROOM in place else ALICE, "x")
        client.resume, client.known = dict(place), {k: copy_of(m) for k, m in known.items()}
        if client.edge.link is not None:
            client.edge.open(client)
        self.world.clients.append(client)

    def say(self) -> None:
        """A client publishes a message, which is delivered to a worker."""
        if client := self.client():
            self.published += 1
            self.router.say(client, "question", ident=f"m{self.published}")

    def cancel(self) -> None:
        """A client cancels one reply, or all replies to one of its messages."""
        client = self.client()
        if client is None:
            return
        if self.draw([True, False]):
            self.router.frame(client, cancel={"message_id": self.message_id()})
            return
        own = [m for m in self.world.messages(client.home) if m.author.user == client.user]
        client_id = self.draw([f"m{self.published}", *(m.client_id for m in reversed(own))])
        ident = f"c{len(self.world.asked)}"
        self.world.asked[ident] = next((m.id for m in own if m.client_id == client_id), "")
        self.router.frame(client, cancel={"id": ident, "client_id": client_id})

    def change(self) -> None:
        """A client edits or recalls a message, perhaps of another user."""
        if client := self.client():
            message_id = self.message_id()
            if self.draw([True, False]):
                self.router.frame(client, recall={"message_id": message_id})
            else:
                parts = [{"text": {"text": "instead"}}]
                self.router.frame(client, edit={"message_id": message_id, "parts": parts})

    def read(self) -> None:
        """A client reports everything it has as delivered and read."""
        client = self.client()
        if client is not None and client.place[client.home].seq:
            position = client.place[client.home].to_proto()
            self.router.frame(client, read={"position": position})
            self.router.frame(client, delivered={"position": position})

    # Producers

    def attach(self, capacity: int) -> None:
        """A worker attaches."""
        self.world.workers.append(Streaming(self.router, f"w{len(self.world.workers)}", capacity))
        self.world.sync()

    def join(self) -> None:
        """Another worker attaches, if there are few."""
        if len(self.world.workers) < 3:
            self.attach(self.draw([1, 2, 3]))

    def open(self) -> None:
        """A worker opens a reply, with a key that may have been used."""
        if not self.world.workers:
            return
        worker = self.draw(self.world.workers)
        held = sorted(worker.worker.held)
        worker.open(self.draw([*held, *held, *TOPICS]), self.draw(KEYS))

    def reply(self) -> tuple[Streaming, int] | None:
        """Draw a reply of a worker, preferably an open one."""
        found = [(w, n) for w in self.world.workers for n in w.opened]
        is_open = [(w, n) for w, n in found if w.replies.current.get(n) is not None]
        return self.draw([*is_open, *is_open, *is_open, *found]) if found else None

    def add(self) -> None:
        """A worker adds a delta to a reply."""
        reply = self.reply()
        if reply is None:
            return
        for _ in range(self.draw([1, 2, 4])):
            self.world.worker_adds(*reply, self.draw(INDEXES), self.draw(["a", "bc"]))

    def end(self) -> None:
        """A worker ends a reply, perhaps with a wrong number of deltas."""
        reply = self.reply()
        if reply is None:
            return
        (worker, number), state, off_by = reply, self.draw(STATES), self.draw([0, 0, 0, 1])
        message = worker.replies.current.get(number)
        worker.ended.pop(number, None)
        was_ending = message is not None and message.ended is not None
        worker.end(number, (message.next_index if message is not None else 0) + off_by, state)
        if message is None:
            assert number in worker.ended, "an end is not answered"
        elif off_by and state == COMPLETE:
            assert worker.ended.pop(number).error.code == "DELTA_GAP"
            assert (message.ended is not None) == was_ending

    def backend(self) -> None:
        """A backend opens, extends or ends a message."""
        opened = [b for b in self.world.backends if b.message is not None]
        if not opened or self.draw([True, False, False]):
            # Rejected if the tenant has reached its limit.
            with suppress(Refused):
                self.world.backends.append(Producing(self.router, self.draw(TOPICS), self.draw(KEYS)))
            return
        backend = self.draw(opened)
        self.world.backend_adds(backend, self.draw(INDEXES), "B")
        if self.draw([True, False, False]):
            with suppress(Refused):
                backend.end()

    # Work

    def settle(self) -> None:
        """A worker settles a delivery with any outcome."""
        held = [(w, n) for w in self.world.workers for n, h in w.worker.held.items() if not h.is_settling]
        if not held:
            return
        worker, number = self.draw(held)
        outcomes: dict[str, dict[str, Any]] = {
            "retry": {"retry": {"after_ms": 2000}},
            "reject": {"reject": {"reason": "no"}},
        }
        how = self.draw(["done", "reply", *outcomes])
        if how in outcomes:
            self.world.leaving.add(number)
        worker.settle(number, *(["at once"] if how == "reply" else []), **outcomes.get(how, {}))

    def replay(self) -> None:
        """An operator replays the dead letters."""
        while self.router.written:
            self.router.report_commit()
        for letter in self.router.log.dead.values():
            assert letter.attempts == 2 or letter.reason == "no"
        self.router.core.dispatcher.replayed(self.router.log.replay("t", "a", list(self.router.log.dead)))

    def leave(self) -> None:
        """A worker's stream breaks."""
        if self.world.workers:
            self.detach(self.draw(self.world.workers))

    def detach(self, worker: Streaming) -> None:
        """This worker's stream breaks."""
        self.world.leaving |= worker.worker.held.keys()
        self.world.workers.remove(worker)
        worker.detach()
        self.world.sync()

    def pass_time(self) -> None:
        """Time passes while workers send something or are silent."""
        self.tick(self.draw([0.5, 3.0, 6.0, 16.0]), alive=self.draw([True, True, False]))

    def tick(self, seconds: float, *, alive: bool) -> None:
        """This much time passes."""
        self.router.core.checkpoint()
        for edge in self.router.edges.values():
            if edge.link is not None:
                edge.link.heard_at = self.router.now + seconds
        for worker in self.world.workers:
            self.world.leaving |= worker.worker.held.keys()
            if alive:
                worker.worker.heard_at = self.router.now + seconds
        silent = [peer for peer, _ in self.router.tick(seconds)]
        for worker in [w for w in self.world.workers if w.worker in silent]:
            self.detach(worker)
        self.world.sync()

    # Trouble

    def fail(self) -> None:
        """A commit fails."""
        for number, delivery in self.router.log.unsettled.items():
            if Message.FromString(delivery.message).id in self.router.core.agent_queues.withdrawing:
                # It may be late in its conversation if it is requeued.
                self.world.leaving.add(number)
        self.router.fail()

    def fail_read(self) -> None:
        """A read fails."""
        self.router.fail_read()

    def break_link(self) -> None:
        """A link breaks."""
        self.router.break_link(self.draw(EDGES))

    def link(self) -> None:
        """An edge opens a link, whether its current one is up or not."""
        self.router.link(self.draw(EDGES))

    def restart(self) -> None:
        """The router is killed and restarted."""
        self.world.restart()
        if self.draw([True, True, False]):
            for edge in EDGES:
                self.router.link(edge)
        self.attach(2)

    def reset(self) -> None:
        """A log is erased."""
        self.world.erase(self.draw(TOPICS))

    # Checks

    @rule()
    def rest(self) -> None:
        self.world.rest()

    @invariant()
    def tables_and_texts_are_right(self) -> None:
        if hasattr(self, "world"):
            check_all(self.router.core, self.router.log, at_rest=False)
            self.world.check_texts()

    def teardown(self) -> None:
        """Check that open messages expire without producers, and that a worker settles all deliveries."""
        if not hasattr(self, "world"):
            return
        for name in self.router.edges:
            self.router.link(name)
        self.world.rest()
        for worker in list(self.world.workers):
            self.detach(worker)
        self.world.rest()
        left = set(self.router.log.open)
        self.tick(16.0, alive=True)
        self.world.rest()
        assert not self.router.log.open
        assert all(self.world.ends[message_id] == EXPIRED for message_id in left)
        self.attach(3)
        (worker,) = self.world.workers
        for _ in range(100):
            if not self.router.log.unsettled:
                break
            for number in list(worker.worker.held):
                worker.settle(number)
            self.tick(2.0, alive=True)
            self.world.rest()
        assert not self.router.log.unsettled, "a delivery is lost"
        for client in self.world.clients:
            if client.state != "closed":
                self.router.close(client)
        self.detach(worker)
        self.world.rest()
        assert not self.router.core.directory.topics


RepliesMachine.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
test_streamed_replies_end_once_and_lose_nothing = RepliesMachine.TestCase
