"""State machine of the whole core: every subscriber gets each message once, in order, without gaps."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from trunkline_router.core.directory.connections import default_topics
from trunkline_router.core.values.topics import (
    EMPTY,
    GROUP,
    PERSON,
    USER,
    Position,
    TopicKey,
    position_of,
    topic_of,
)

from tests.router.core.harness.client import Client
from tests.router.core.harness.invariants import check_tables
from tests.router.core.harness.router import ALICE, PLATFORM, ROOM, Router

pytestmark = pytest.mark.long

OTHER_ROOM: TopicKey = ("t", "a", "w", GROUP, "other")
FOREIGN: TopicKey = ("u", "a", "w", PERSON, "alice")
HOMES = st.sampled_from([ALICE, ALICE, ROOM, PLATFORM, FOREIGN])
TENANT: TopicKey = ("t", "", "", 0, "")
AGENT: TopicKey = ("t", "a", "", 0, "")
USERS: list[TopicKey] = [("t", "", "", USER, "x"), ("u", "", "", 0, "")]
TOPICS = st.sampled_from([ALICE, ROOM, OTHER_ROOM, PLATFORM, FOREIGN, TENANT, AGENT, *USERS])
EDGES = st.sampled_from(["e1", "e2"])
STEPS = ["write", "report_commit", "read_log", "return_reads"]


class CoreMachine(RuleBasedStateMachine):
    """Clients check each frame on arrival; see `Client`."""

    def __init__(self) -> None:
        super().__init__()
        self.clients: list[Client] = []
        self.gone: list[dict[TopicKey, Position]] = []
        self.published = 0
        #: Positions that each user reported as delivered, and the lowest from which a client may resume.
        self.delivered: dict[tuple[TopicKey, str], set[Position]] = {}
        self.surely: dict[str, dict[TopicKey, Position]] = {}

    @initialize(peeks=st.booleans())
    def start(self, peeks: bool) -> None:
        self.router = Router(peeks=peeks)
        self.router.edge("e1")
        self.router.edge("e2")

    def some(self, data: Any, state: str = "open") -> Client | None:
        """Draw a client in a state, if there is one."""
        found = [client for client in self.clients if client.state == state]
        return data.draw(st.sampled_from(found)) if found else None

    @rule(home=HOMES, user=st.sampled_from(["", "x"]), edge=EDGES)
    def open(self, home: TopicKey, user: str, edge: str) -> None:
        self.clients.append(self.router.open(home, user=user, edge=edge))

    @precondition(lambda self: self.gone)
    @rule(data=st.data(), home=HOMES, edge=EDGES)
    def resume(self, data: Any, home: TopicKey, edge: str) -> None:
        place = data.draw(st.sampled_from(self.gone))
        heard = default_topics(home, "x")
        wanted = {key: position for key, position in place.items() if key in heard}
        self.clients.append(self.router.open(home, user="x", edge=edge, resume=wanted))

    @rule(home=HOMES, edge=EDGES)
    def resume_delivered(self, home: TopicKey, edge: str) -> None:
        whose = [(key, "x") for key in default_topics(home, "x")]
        on_disk = {
            key: place for (key, _), place in zip(whose, self.router.log.delivered(whose), strict=True)
        }
        client = self.router.open(home, user="x", edge=edge, delivered=True)
        self.surely[client.id] = on_disk
        self.clients.append(client)

    @rule(data=st.data())
    def report_delivered(self, data: Any) -> None:
        client = self.some(data)
        places = [key for key, place in client.place.items() if place.seq] if client is not None else []
        if client is not None and places and client.user and client.edge.link is not None:
            key = data.draw(st.sampled_from(places))
            seq = data.draw(st.integers(1, client.place[key].seq))
            position = client.place[key]._replace(seq=seq)
            self.delivered.setdefault((key, client.user), set()).add(position)
            self.router.was_given(client, key, position)

    @rule(data=st.data(), state=st.sampled_from(["open", "open", "opening"]))
    def close(self, data: Any, state: str) -> None:
        if client := self.some(data, state):
            self.gone.append(dict(client.place))
            self.router.close(client)

    @rule(data=st.data(), room=st.booleans(), resend=st.booleans())
    def say(self, data: Any, room: bool, resend: bool) -> None:
        client = self.some(data)
        if client is not None and client.edge.link is not None:
            self.published += 0 if resend else 1
            ident = f"m{self.published}"
            self.router.say(client, f"text {self.published}", ROOM if room else None, ident=ident)

    @rule(key=TOPICS, ephemeral=st.booleans(), keyed=st.booleans())
    def broadcast(self, key: TopicKey, ephemeral: bool, keyed: bool) -> None:
        self.published += 1
        more = {"idempotency_key": f"k{self.published // 2}"} if keyed and not ephemeral else {}
        self.router.broadcast(key, f"text {self.published // 2}", ephemeral=ephemeral, **more)

    @rule(data=st.data(), key=st.sampled_from([ROOM, OTHER_ROOM]), resumed=st.booleans())
    def subscribe(self, data: Any, key: TopicKey, resumed: bool) -> None:
        client = self.some(data)
        if client is None or client.edge.link is None or key in client.place:
            return
        subscribing = [f for f in client.unanswered.values() if f.HasField("subscribe")]
        if not subscribing:
            known = [place[key] for place in self.gone if key in place] or [EMPTY]
            more = {"position": known[-1].to_proto()} if resumed else {}
            self.router.subscribe(client, key, **more)

    @rule(data=st.data(), key=st.sampled_from([ROOM, OTHER_ROOM]))
    def unsubscribe(self, data: Any, key: TopicKey) -> None:
        client = self.some(data)
        if client is not None and client.edge.link is not None:
            self.router.unsubscribe(client, key)

    @rule(steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=6))
    def step(self, steps: list[str]) -> None:
        for step in steps:
            getattr(self.router, step)()

    @rule()
    def fail(self) -> None:
        self.router.fail()

    @rule()
    def fail_read(self) -> None:
        self.router.fail_read()

    @rule(edge=EDGES)
    def break_link(self, edge: str) -> None:
        self.router.break_link(edge)

    @rule(edge=EDGES)
    def link(self, edge: str) -> None:
        self.router.link(edge)

    @rule(key=TOPICS)
    def reset(self, key: TopicKey) -> None:
        self.router.reset(key)

    @rule(seconds=st.sampled_from([1.0, 6.0]))
    def tick(self, seconds: float) -> None:
        for edge in self.router.edges.values():
            if edge.link is not None:
                edge.link.heard_at = self.router.now + seconds
        self.router.tick(seconds)

    @rule()
    def rest(self) -> None:
        """Finish everything under way and check that all linked clients are up to date."""
        self.router.run()
        check_tables(self.router.core, at_rest=True)
        for client in self.clients:
            if client.edge.link is None or client.state == "closed":
                continue
            assert client.state == "open"
            assert not client.unanswered
            heard = {h.key for h in client.edge.topics.values() if client in h.listeners}
            assert heard == client.place.keys()
            assert heard >= set(default_topics(client.home, client.user))
            for key in heard:
                head = self.router.log.head(key)
                place = client.place[key]
                # After an erasure nobody receives anything until the next message.
                assert place == head or head == EMPTY, f"{client.id} at {place} of {key}, which is at {head}"

    @invariant()
    def a_client_that_resumes_by_delivery_begins_at_its_users_receipts(self) -> None:
        for client in self.clients:
            if client.id not in self.surely or client.state != "open":
                continue
            on_disk = self.surely.pop(client.id)
            connected = client.frames[0].connected
            for entry in connected.positions if connected.recovered else ():
                key, start = topic_of(entry.address), position_of(entry.position)
                assert not start.seq or start in self.delivered[key, "x"], (
                    f"{client.id} begins at {start} of {key}"
                )
                same_log = start.epoch == on_disk[key].epoch
                assert not same_log or start >= on_disk[key], f"{client.id} resumes {key} too early"

    @invariant()
    def tables_are_consistent(self) -> None:
        if hasattr(self, "router"):
            check_tables(self.router.core, at_rest=False)

    def teardown(self) -> None:
        """Check that nothing is left once all clients are gone."""
        if not hasattr(self, "router"):
            return
        router = self.router
        for name in router.edges:
            router.link(name)
        self.rest()
        for client in self.clients:
            if client.state != "closed":
                router.close(client)
        router.run()
        assert not router.core.directory.topics
        assert not any(map(router.connections_of, router.core.directory.tenants))


CoreMachine.TestCase.settings = settings(
    max_examples=300,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
test_whoever_listens_gets_every_message_once_in_order = CoreMachine.TestCase


def test_a_client_whose_replay_is_cut_by_a_lost_link_connects_again() -> None:
    """It has not received all that it missed. The sequence is one that `make soak` found."""
    machine = CoreMachine()
    machine.start(peeks=False)
    machine.resume_delivered(ALICE, "e2")
    machine.step(["read_log"])
    machine.resume_delivered(ALICE, "e1")
    machine.broadcast(ALICE, ephemeral=False, keyed=False)
    machine.fail_read()
    machine.resume_delivered(ALICE, "e1")
    machine.resume_delivered(ALICE, "e2")
    machine.step(["write", "read_log"])
    machine.fail_read()
    machine.reset(("t", "a", "w", 0, ""))
    machine.step(["read_log", "return_reads"] * 3)
    first = machine.clients[0]
    assert (first.state, first.place[ALICE].seq) == ("open", 0)
    machine.teardown()
    assert first.close_reason == "POSITION_LOST"
