"""Edge cores and a router core, wired to each other without a socket, a clock or a disk.

Nothing moves by itself: what is under way on links, in the commit queue and in the log's reader is moved
step by step, so that a test can break a link with anything lost and anything still to come.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from trunkline.v1 import catalogue
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest
from trunkline.v1.catalogue import Refused
from trunkline.v1.message_pb2 import Message
from trunkline.v1.tenant_limits import default_limits
from trunkline_router.core.commits.commit_queue import AtomicWrite
from trunkline_router.core.commits.effects import (
    CountWaiting,
    ReadDelivered,
    ReadDeliveries,
    ReadHeads,
    ReadMessage,
    ReadPages,
)
from trunkline_router.core.directory.connections import ConnectedClient, Link
from trunkline_router.core.router import RouterCore
from trunkline_router.core.values.log_records import PendingEntry, Transaction
from trunkline_router.core.values.topics import Position, TopicKey

from tests.edge.core.core_harness import group
from tests.support.declared_tenants import registered
from tests.wired_cores.client import Client
from tests.wired_cores.edge import WINDOW, EdgeSide
from tests.wired_cores.log import MemoryLog
from tests.wired_cores.worker import Worker

REPLY_LEASE_S = 15.0
#: Longer than any signal of the tests lives.
SIGNALS_LIVE_S = 10.0
#: Few, so that links are held up.
OUTBOX_MAX_BYTES = 1500
#: In the order in which the runtime reads.
KINDS = (ReadHeads, ReadDelivered, ReadDeliveries, CountWaiting, ReadMessage, ReadPages)


class Backend:
    """Origin of a backend's messages."""

    connection: ConnectedClient | None = None

    def __init__(self) -> None:
        self.blocked_by: set[Link] = set()

    def committed(self, pending: PendingEntry) -> None:
        """Ignore a commit."""

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """Check the reason for a failed commit."""
        assert reason.entry.code == "LOG_UNAVAILABLE"


class World:
    """Two edges, a router and workers."""

    def __init__(self, knows_heads: bool) -> None:
        self.now = 0.0
        self.log = MemoryLog()
        self._knows_heads = knows_heads
        #: On disk, and not reported to the router yet.
        self.written: deque[tuple[Transaction, list[AtomicWrite]]] = deque()
        #: Reads that wait, and results not returned yet.
        self._to_read: list[Any] = []
        self.read: Callable[[], None] | None = None
        #: Peers with something to be written.
        self.mail: set[Any] = set()
        self.router = self._new_router()
        self.edges = [EdgeSide(self, "one"), EdgeSide(self, "two")]
        self.workers: list[Worker] = []
        #: By message: how it ended and where, and how many of its deltas were reported to be on disk.
        self.ends: dict[str, tuple[int, int]] = {}
        self.promised: dict[str, int] = {}
        self.errors: Counter[str] = Counter()
        self.names = 0

    def _new_router(self) -> RouterCore:
        router = RouterCore(
            default_limits(open_messages=8),
            window=WINDOW,
            lease_s=1e9,
            delivery_lease_s=1e9,
            reply_lease_s=REPLY_LEASE_S,
            max_attempts=3,
            max_open_bytes=1 << 20,
            checkpoint_bytes=200,
            outbox_max_bytes=OUTBOX_MAX_BYTES,
            peek=self._peek,
            new_id=lambda: "x",
            now_ms=lambda: 0,
            random=lambda: 1.0,
        )
        router.tenant_table.load(registered("t"))
        return router

    def _peek(self, key: TopicKey) -> Position | None:
        return self.log.head(key) if self._knows_heads and not self.written else None

    @property
    def clients(self) -> list[Client]:
        """Return all clients that are not gone."""
        return [client for edge in self.edges for client in edge.clients.values() if not client.is_gone]

    # Backends and workers

    def broadcast(self, name: str) -> None:
        """Broadcast a message from a backend."""
        request = BroadcastRequest(address=group(name))
        request.parts.add().text.text = "from a backend"
        self.router.publishing.publish(request, Backend())

    def attach(self) -> None:
        """Attach a worker."""
        self.names += 1
        self.workers.append(Worker(self, f"w{self.names}"))

    def detach(self, worker: Worker) -> None:
        """Break a worker's stream."""
        self.workers.remove(worker)
        self.router.worker_detached(worker.peer, self.now)

    def restart_router(self) -> None:
        """Kill the router, and restart it from the log."""
        for edge in self.edges:
            edge.lose(router_notices=True)
        self.workers.clear()
        self.written.clear()
        self._to_read.clear()
        self.mail.clear()
        self.read = None
        for message_id in self.log.open:
            assert self.log.saved(message_id) >= self.promised.get(message_id, 0), "a promise is broken"
        self.router = self._new_router()
        self.router.open_messages.load(self.log.open_messages(), self.now)
        for message_id in self.log.open:
            message = self.router.open_messages.get(message_id)
            assert message is not None
            assert message.next_index == self.log.saved(message_id)

    def tick(self, seconds: float, workers_are_heard: bool) -> None:
        """Let time pass for the router."""
        self.now += seconds
        for worker in self.workers if workers_are_heard else ():
            worker.peer.heard_at = self.now
        assert self.router.tick(self.now) == []

    # The log

    def commit(self) -> bool:
        """Commit the waiting transaction."""
        if not self.router.effects.commit_queue:
            return False
        transaction, writes = self.router.effects.commit_queue.take()
        self.log.append(transaction)
        self.written.append((transaction, writes))
        return True

    def report(self) -> bool:
        """Report a commit to the router."""
        if not self.written:
            return False
        self.router.committed(*self.written.popleft())
        return True

    def fail(self) -> None:
        """Fail the waiting transaction."""
        while self.report():
            pass
        if self.router.effects.commit_queue:
            self.router.commit_failed(*self.router.effects.commit_queue.take())

    def look(self) -> bool:
        """Read the log: heads and pages at once, everything else one by one."""
        if self.read is not None:
            return False
        if not self._to_read:
            self._to_read = sorted(self.router.effects.reads, key=lambda read: KINDS.index(type(read)))
            self.router.effects.reads.clear()
        if not self._to_read:
            return False
        kind = type(self._to_read[0])
        alike = [read for read in self._to_read if type(read) is kind]
        reads = alike if kind in (ReadHeads, ReadPages) else alike[:1]
        del self._to_read[: len(reads)]
        found = [(read, self._result(read)) for read in reads]

        def done() -> None:
            for read, result in found:
                read.done(result)

        self.read = done
        return True

    def _result(self, read: Any) -> Any:
        if isinstance(read, ReadHeads):
            return [self.log.head(key) for key in read.topics]
        if isinstance(read, ReadDelivered):
            return self.log.delivered(read.users)
        if isinstance(read, ReadPages):
            return [self.log.read(request) for request in read.requests]
        if isinstance(read, ReadMessage):
            stored = self.log.message(read.tenant, read.message_id)
            return Message.FromString(stored) if stored is not None else None
        if isinstance(read, CountWaiting):
            return self.log.count_waiting(read.tenant, read.agent)
        return self.log.deliveries(read.tenant, read.agent, read.after, read.limit)

    def show(self) -> bool:
        """Return read results to the router."""
        if self.read is None:
            return False
        done, self.read = self.read, None
        done()
        return True

    def fail_read(self) -> None:
        """Fail the waiting reads."""
        while self.show():
            pass
        reads, self._to_read = [*self._to_read, *self.router.effects.reads], []
        self.router.effects.reads.clear()
        for read in reads:
            # Only the read of one message is given the reason.
            read.failed(*[catalogue.LOG_UNAVAILABLE.refused()] * isinstance(read, ReadMessage))

    # All of it

    def settle(self) -> None:
        """Carry out consequences, after each step."""
        self.router.flush(self.now)
        self.mail |= self.router.effects.writable_peers
        self.router.effects.writable_peers.clear()
        for edge in self.edges:
            edge.settle()

    def carry(self) -> bool:
        """Advance everything by one step."""
        steps = [self.commit, self.report, self.look, self.show]
        for edge in self.edges:
            steps += [edge.write, edge.arrive_up, edge.arrive_down, edge.ring]
        moved = False
        for step in steps:
            moved |= step()
            self.settle()
        return moved

    def run_dry(self) -> None:
        """Link all edges, and advance until nothing is left to do."""
        for edge in self.edges:
            edge.relink()
            edge.drain()
            self.settle()
        self.now += 1
        while self.carry():
            self.now += 1
        for worker in self.workers:
            worker.read()

    # The truth

    def note_end(self, message_id: str, state: int, seq: int) -> None:
        """Check that every client receives the same end of a message."""
        end = self.ends.setdefault(message_id, (state, seq))
        assert end == (state, seq), f"{message_id} has ended twice"

    def truth(self, key: TopicKey) -> list[Message]:
        """Return the messages of a topic: from the log, or from the router if open."""
        messages = self.log.messages(key)
        return [self.router.open_messages.snapshot_at(key, m.position.seq) or m for m in messages]

    def _end_signals(self) -> None:
        """At rest: check that whoever was sent a signal that lives is sent its end in time."""
        self.now += SIGNALS_LIVE_S
        for edge in self.edges:
            edge.ring()
        self.settle()
        for client in self.clients:
            assert client.closed_for or not client.living, "a signal never ends"

    def check(self) -> None:
        """At rest: check that every connected client knows the truth, and that each message ended once."""
        assert {m.id for m in self.router.open_messages._by_id.values()} == self.log.open.keys()
        ends = self.log.ends()
        assert len({message_id for message_id, _, _ in ends}) == len(ends), "a message has ended twice"
        for end in ends:
            self.note_end(*end)
        assert self.ends.keys() <= {message_id for message_id, _, _ in ends}
        self._end_signals()
        for client in self.clients:
            if client.closed_for:
                assert client.closed_for in ("POSITION_LOST", "SLOW_CONSUMER", "ROUTER_UNAVAILABLE")
            else:
                client.check()
