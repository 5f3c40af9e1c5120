"""Runs a RouterCore step by step: the test decides when a commit or read completes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import Grants
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import LinkHello, LinkRequest
from trunkline.v1.frame_pb2 import ClientFrame
from trunkline.v1.message_pb2 import Message, Part, TextPart
from trunkline.v1.tenant_limits import default_limits
from trunkline.v1.tenant_pb2 import TENANT_STATE_ACTIVE, TenantSettings, TenantState
from trunkline_router.core.commits.commit_queue import AtomicWrite
from trunkline_router.core.commits.effects import (
    CountWaiting,
    ReadDelivered,
    ReadDeliveries,
    ReadHeads,
    ReadMessage,
    ReadPages,
)
from trunkline_router.core.commits.publishing import response_of
from trunkline_router.core.directory.connections import ConnectedClient
from trunkline_router.core.router import RouterCore
from trunkline_router.core.values.log_records import PendingEntry, Transaction
from trunkline_router.core.values.stored_records import Registered
from trunkline_router.core.values.topics import GROUP, PERSON, Position, TopicKey, address_of

from tests.router.core.harness.client import Client
from tests.router.core.harness.edge import Edge
from tests.support.declared_tenants import registered, stored_tenant
from tests.support.memory_log import MemoryLog

ALICE: TopicKey = ("t", "a", "w", PERSON, "alice")
ROOM: TopicKey = ("t", "a", "w", GROUP, "room")
PLATFORM: TopicKey = ("t", "a", "w", 0, "")


class Backend:
    """Listener of a backend's message."""

    connection: ConnectedClient | None = None

    def __init__(self) -> None:
        self.blocked_by: set[Any] = set()
        self.response: Any = None
        self.reason: Refused | None = None

    def committed(self, pending: PendingEntry) -> None:
        """The message was committed."""
        assert self.response is None
        assert self.reason is None
        self.response = response_of(pending)

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """The message was refused."""
        assert self.response is None
        assert self.reason is None
        self.reason = reason


class Router:
    """One core, its log, and its edges.

    `write` commits the next batch, and `report_commit` notifies the core; `read_log` performs the next
    read, and `return_reads` passes the core its result. As in the runtime, one read is under way at a time.
    `run` does everything until the router is idle; `restart` is `kill -9` and a new router over the same log.
    """

    def __init__(
        self, *, window: int = 8, peeks: bool = False, max_open_messages: int = 100, **options: Any
    ) -> None:
        self.log = MemoryLog()
        self.now = 0.0
        self._ids = count(1)
        self._peeks = peeks
        #: As they are on disk.
        self.tenants = registered("t", "u").tenants
        self._defaults = default_limits(conversations=3, open_messages=max_open_messages)
        self._options = {
            "window": window,
            "lease_s": 10.0,
            "delivery_lease_s": 5.0,
            "reply_lease_s": 15.0,
            "max_attempts": 3,
            "max_open_bytes": 1 << 30,
            "checkpoint_bytes": 10_000,
            "outbox_max_bytes": 1 << 20,
            **options,
        }
        self.edges: dict[str, Edge] = {}
        self.written: deque[tuple[Transaction, list[AtomicWrite]]] = deque()
        self.reads: deque[Any] = deque()
        self.looked: Callable[[], None] | None = None
        self._frame_ids = count(1)
        self.core = self._new_core()

    def _new_core(self) -> RouterCore:
        core = RouterCore(
            self._defaults,
            peek=self._peek,
            new_id=lambda: str(next(self._ids)),
            now_ms=lambda: round(1000 * self.now),
            random=lambda: 1.0,
            **self._options,
        )
        core.tenant_table.load(Registered(tenants=self.tenants))
        return core

    def _peek(self, key: TopicKey) -> Position | None:
        # An engine knows no head beyond the commits reported to the core.
        return None if self.written or not self._peeks else self.log.head(key)

    def restart(self) -> None:
        """Kill the router: uncommitted entries are lost. Edges link, and workers attach, again."""
        for edge in self.edges.values():
            if edge.link is not None:
                edge.lost()
        self.written.clear()
        self.reads.clear()
        self.looked = None
        self.core = self._new_core()
        self.core.open_messages.load(self.log.open_messages(), self.now)
        self.core.tick(self.now)

    # Edges and clients

    def edge(self, name: str = "e1") -> Edge:
        """Return an edge, linked on first use."""
        if name not in self.edges:
            self.edges[name] = Edge(name)
            self.link(name)
        return self.edges[name]

    def link(self, name: str, credit: int = 1_000_000) -> None:
        """Link the edge, or link it again."""
        edge = self.edges[name]
        hello = LinkHello(edge_id=name, boot_id="b", contract_minor=catalogue.CONTRACT_MINOR)
        link, _ = self.core.link_opened(hello, self.now)
        if edge.link is not None:
            edge.lost()
        edge.linked(link)
        self.core.link_received(link, LinkRequest(credit=credit), self.now)
        self.carry()

    def break_link(self, name: str = "e1") -> None:
        """Break the stream of an edge."""
        edge = self.edges[name]
        if edge.link is not None:
            self.core.link_lost(edge.link)
            self.core.link_drained(edge.link)
            edge.lost()
            self.carry()

    def open(
        self,
        home: TopicKey = ALICE,
        *,
        user: str = "",
        edge: str = "e1",
        resume: dict[TopicKey, Position] | None = None,
        delivered: bool = False,
        echo: bool = False,
        supersedes_at: int | None = None,
        holder: str = "",
        grants: Grants | None = None,
        remote_ip: str = "127.0.0.1",
    ) -> Client:
        """Connect a client; the answer may wait for reads."""
        client = self.edge(edge).new_client(home, user)
        client.resume = resume or {}
        client.resumes_delivered = delivered
        client.echo = echo
        client.supersedes_at, client.holder = supersedes_at, holder
        client.grants, client.remote_ip = grants, remote_ip
        if client.edge.link is not None:
            client.edge.open(client)
        self.carry()
        return client

    def connected(self, home: TopicKey = ALICE, **options: Any) -> Client:
        """Return a connected client."""
        client = self.open(home, **options)
        self.run()
        assert client.state == "open", client.close_reason
        return client

    def close(self, client: Client) -> None:
        """Disconnect a client."""
        client.edge.close(client)
        self.carry()

    def frame(self, client: Client, **frame: Any) -> str:
        """Send a client's frame. Returns its id."""
        sent = ClientFrame(**frame)
        kind = str(sent.WhichOneof("frame"))
        body = getattr(sent, kind)
        if hasattr(body, "id") and not body.id:
            body.id = f"f{next(self._frame_ids)}"
        client.edge.say(client, sent)
        self.carry()
        return getattr(body, "id", "")

    def say(self, client: Client, text: str, key: TopicKey | None = None, ident: str = "") -> str:
        """Send a client's message, to its own conversation by default. Returns its id."""
        message: dict[str, Any] = {"id": ident, "parts": [{"text": {"text": text}}]}
        if key is not None:
            message["conversation"] = {"kind": key[3], "id": key[4]}
        return self.frame(client, message=message)

    def subscribe(self, client: Client, key: TopicKey = ROOM, **more: Any) -> str:
        """Subscribe a client to a group."""
        return self.frame(client, subscribe={"conversation": {"kind": key[3], "id": key[4]}, **more})

    def unsubscribe(self, client: Client, key: TopicKey = ROOM) -> str:
        """Unsubscribe a client from a group."""
        return self.frame(client, unsubscribe={"conversation": {"kind": key[3], "id": key[4]}})

    def was_given(self, client: Client, key: TopicKey, position: Position | None = None) -> None:
        """Report the position delivered to a client, its own by default."""
        place = (position or client.place[key]).to_proto()
        self.frame(client, delivered={"position": place, "address": address_of(key)})

    def broadcast(self, to: Any, text: str = "hello", **more: Any) -> Backend:
        """Publish a backend's message. Raises Refused if the request is rejected."""
        address = address_of(to) if isinstance(to, tuple) else to
        listener = Backend()
        request = BroadcastRequest(address=address, parts=[Part(text=TextPart(text=text))], **more)
        try:
            self.core.publishing.publish(request, listener)
        finally:
            self.carry()
        return listener

    # Tenants

    def connections_of(self, name: str) -> list[ConnectedClient]:
        """Return the accepted connections of the tenant of this name."""
        directory = self.core.directory
        return list(directory.connections_of(directory.tenants[name]).values())

    def declare(
        self,
        name: str,
        settings: TenantSettings | None = None,
        state: TenantState.ValueType = TENANT_STATE_ACTIVE,
    ) -> None:
        """Add or change a tenant, as after its commit."""
        stored = stored_tenant(name, settings, state)
        self.tenants = [each for each in self.tenants if each.tenant != name] + [stored]
        self.core.tenant_table.put(stored)
        self.carry()

    def grant(self, client: Client, grants: Grants, ident: str = "a1") -> None:
        """Send the grants of another token that the client's edge has verified."""
        granted = client.edge.inbox.entries.add().granted
        granted.connection, granted.id = client.number, ident
        granted.grants.CopyFrom(grants)
        self.carry()

    # The log

    def write(self) -> None:
        """Commit the next batch of the commit queue, without notifying the core."""
        if self.core.effects.commit_queue:
            transaction, writes = self.core.effects.commit_queue.take()
            self.log.now_ms = round(self.now * 1000)
            self.log.append(transaction)
            self.written.append((transaction, writes))

    def report_commit(self) -> None:
        """Notify the core of the oldest committed batch."""
        if self.written:
            self.core.committed(*self.written.popleft())
            self.carry()

    def fail(self) -> None:
        """Fail the next batch of the commit queue, after reporting earlier commits."""
        while self.written:
            self.report_commit()
        if self.core.effects.commit_queue:
            self.core.commit_failed(*self.core.effects.commit_queue.take())
            self.carry()

    def reset(self, key: TopicKey) -> None:
        """Erase a log; never while a batch is being committed."""
        while self.written:
            self.report_commit()
        self.log.reset(key)
        self.core.topic_erased(key)
        self.carry()

    def read_log(self) -> None:
        """Perform the core's next read."""
        if self.looked is not None:
            return
        if not self.reads:
            kinds = (ReadHeads, ReadDelivered, ReadDeliveries, CountWaiting, ReadMessage, ReadPages)
            self.reads.extend(sorted(self.core.effects.reads, key=lambda read: kinds.index(type(read))))
            self.core.effects.reads.clear()
        if self.reads:
            read = self.reads.popleft()
            result = self._result(read)
            self.looked = lambda: read.done(result)

    def _result(self, read: Any) -> Any:
        if isinstance(read, ReadHeads):
            return [self.log.head(key) for key in read.topics]
        if isinstance(read, ReadDelivered):
            return self.log.delivered(read.users)
        if isinstance(read, ReadPages):
            return [self.log.read(request) for request in read.requests]
        if isinstance(read, ReadMessage):
            stored = self.log.message(read.tenant, read.message_id)
            return None if stored is None else Message.FromString(stored)
        if isinstance(read, CountWaiting):
            return self.log.count_waiting(read.tenant, read.agent)
        return self.log.deliveries(read.tenant, read.agent, read.after, read.limit)

    def return_reads(self) -> None:
        """Pass the core the result of its read."""
        if self.looked is not None:
            done, self.looked = self.looked, None
            done()
            self.carry()

    def fail_read(self) -> None:
        """Fail the core's next read."""
        self.return_reads()
        if self.core.effects.reads and not self.reads:
            self.reads.extend(self.core.effects.reads)
            self.core.effects.reads.clear()
        if self.reads:
            read = self.reads.popleft()
            # Only the read of one message is given the reason.
            read.failed(*[catalogue.LOG_UNAVAILABLE.refused()] * isinstance(read, ReadMessage))
            self.carry()

    def sweep(self, limit: int = 2000) -> None:
        """Remove expired deliveries, as the router's maintenance does."""
        self.log.now_ms = round(self.now * 1000)
        after = 0
        while True:
            page = self.log.expired(after, limit)
            self.core.dispatcher.expired(page.expired)
            after = page.after
            if not after:
                break
        self.carry()

    # Everything

    def carry(self) -> None:
        """Carry batches both ways until none is left that has credit."""
        while True:
            self.core.flush(self.now)
            self.core.effects.writable_peers.clear()
            moved = False
            for edge in self.edges.values():
                link = edge.link
                if link is None or link.is_lost:
                    continue
                while edge.link is link and edge.inbox.entries:
                    batch, edge.inbox = edge.inbox, LinkRequest()
                    self.core.link_received(link, batch, self.now)
                    self.core.flush(self.now)
                    moved = True
                while (out := link.outbox.take()) is not None:
                    edge.received(out)
                    self.core.link_drained(link)
                    moved = True
            if not moved:
                return

    @property
    def is_idle(self) -> bool:
        """No commit, read or batch is under way."""
        core = self.core
        return not (
            core.effects.commit_queue or core.effects.reads or self.reads or self.looked or self.written
        )

    def run(self) -> None:
        """Commit, read and carry until the router is idle."""
        self.carry()
        for _ in range(5000):
            self.write()
            self.report_commit()
            self.read_log()
            self.return_reads()
            if self.is_idle:
                return
        raise AssertionError("it never comes to rest")

    def tick(self, seconds: float) -> list[Any]:
        """Let time pass. Returns the peers that were silent too long."""
        self.now += seconds
        silent = self.core.tick(self.now)
        self.carry()
        return silent
