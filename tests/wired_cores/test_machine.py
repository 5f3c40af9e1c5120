"""State machine over an edge's core wired to a router's: whatever breaks, all clients see the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trunkline.v1.frame_pb2 import SIGNAL_END_STOPPED, ClientFrame
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_FAILED,
    MESSAGE_STATE_OPEN,
)
from trunkline_edge.core.connection import ConnectionState
from trunkline_edge.dialects.codec import StreamingMode
from trunkline_router.core.values.topics import GROUP, topic_of

from tests.edge.core.core_harness import group
from tests.edge.core.snapshot_codec import SO_FAR, WHOLE
from tests.wired_cores.client import HOME, Client
from tests.wired_cores.dialect_client import ShownClient
from tests.wired_cores.edge import EdgeSide
from tests.wired_cores.harness import REPLY_LEASE_S, World

NAMES = ("home", "home", "one", "two")
STATES = (MESSAGE_STATE_COMPLETE, MESSAGE_STATE_COMPLETE, MESSAGE_STATE_FAILED, MESSAGE_STATE_CANCELLED)
#: What is added at a time: texts, reasoning, parts of a tool call.
ADDITIONS = ("t", "t", "t", "tt", "ttt", "r", "p", "tr", "pt")
#: What happens, and how often compared with the others.
HAPPENINGS = {
    "add": 16,
    "carry": 12,
    "write up down commit report look show": 6,
    "wait": 5,
    "ring open subscribe": 4,
    "unsubscribe resume say edit checkpoint stall lose relink": 3,
    "end cancel read backend drain settle recall switch signal stop": 2,
    "connect leave attach detach expire restart history delivered slow beat": 1,
    "cancel_mine fail fail_read": 1,
}
OPERATIONS = [name for names, times in HAPPENINGS.items() for name in names.split() * times]

operations = st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 63), st.sampled_from(NAMES))


def about(kind: str, name: str) -> ClientFrame:
    frame = ClientFrame()
    inner = getattr(frame, kind)
    inner.conversation.CopyFrom(group(name).conversation)
    if kind == "message":
        inner.parts.add().text.text = "hello"
    return frame


def connect(edge: EdgeSide, pick: int) -> None:
    """Users connect more than once, and without a name; half without a window, some by a dialect."""
    if sum(not client.is_gone for client in edge.clients.values()) == 5:
        return
    rollup_ms, number = 40 if pick % 4 > 1 else 0, len(edge.clients)
    if pick % 8 < 4:
        edge.connect(("u1", "u2", "")[number % 3], rollup_ms)
    else:
        user = f"{edge.name}{number}" if pick % 3 else ""
        edge.show(user, rollup_ms, StreamingMode.SNAPSHOTS if pick % 16 < 8 else StreamingMode.COMPLETE)


def of_edge(edge: EdgeSide, operation: str, pick: int) -> None:
    """Steps between an edge and its router, and of its clients' sockets."""
    match operation:
        case "write":
            edge.write()
        case "up":
            edge.arrive_up()
        case "down":
            edge.arrive_down()
        case "connect":
            connect(edge, pick)
        case "lose":
            edge.lose(router_notices=pick % 3 > 0)
        case "relink":
            edge.relink()
        case "ring":
            edge.ring()
        case "drain":
            edge.drain()
        case "beat":
            edge.beat()


def of_router(world: World, operation: str, pick: int, name: str) -> None:
    """Steps in and behind the router."""
    if operation in ("commit", "report", "look", "show", "fail", "fail_read", "carry"):
        getattr(world, operation)()
    match operation:
        case "backend":
            world.broadcast(name)
        case "checkpoint":
            world.router.checkpoint()
        case "wait":
            world.now += pick / 500
        case "expire":
            world.tick(REPLY_LEASE_S / (1 + pick % 2), workers_are_heard=pick % 4 > 0)
        case "restart":
            world.restart_router()


def of_worker(world: World, operation: str, pick: int, name: str) -> None:
    """Steps of a worker."""
    if operation == "attach" and len(world.workers) < 3:
        world.attach()
    if not world.workers:
        return
    worker = world.workers[pick % len(world.workers)]
    pick //= 3
    match operation:
        case "detach":
            world.detach(worker)
        case "open":
            worker.read()
            delivery_id = worker.deliveries[0] if worker.deliveries and pick % 2 else None
            worker.open(name, f"{name} {pick % 3}", delivery_id)
        case "settle" if worker.deliveries:
            worker.settle(worker.deliveries[0], answers=pick % 3 == 0)
        case "add" | "end" if numbers := worker.opened():
            number = numbers[pick % len(numbers)]
            if operation == "add":
                worker.add(number, ADDITIONS[pick % len(ADDITIONS)])
            else:
                worker.end(number, STATES[pick % len(STATES)])


def of_client(client: Client, operation: str, pick: int, name: str) -> None:
    """Steps of a connected client, rarely in a group that it has not joined."""
    heard = [key[4] for key in client.topics if key[3] == GROUP]
    if operation != "subscribe" and heard and pick and name not in heard:
        name = heard[-1]
    match operation:
        case "say" | "history":
            client.send(about("message" if operation == "say" else operation, name))
        case "subscribe":
            subscribe(client, list(client.left)[-1][4] if client.left and pick else name)
        case "unsubscribe" if name != "home":
            client.send(about("unsubscribe", name))
        case "edit" | "recall" | "cancel":
            change(client, operation, pick)
        case "cancel_mine":
            cancel(client, pick)
        case "read" | "delivered" | "signal" | "stop":
            (receipt if operation in ("read", "delivered") else signal)(client, operation, pick, name)
        case "stall":
            client.connection.has_backlog = True
        case "slow" if client.connection.has_backlog:
            client.edge.core.backpressure.close_slow(client.connection)


def subscribe(client: Client, name: str) -> None:
    """A client joins a group, and resumes at its last position."""
    under_way = [frame.subscribe for frame in client.waiting.values() if frame.HasField("subscribe")]
    # A client that asks twice for missed entries may receive them twice.
    if name in ("", "home") or any(each.HasField("position") for each in under_way):
        return
    frame = about("subscribe", name)
    key = topic_of(group(name))
    left = client.left.get(key)
    if left is not None and not under_way:
        position = frame.subscribe.position
        position.epoch, position.seq = client.world.log.epoch(key) if left else "", left
    client.send(frame)


def change(client: Client, operation: str, pick: int) -> None:
    """A client edits or recalls a message of its own, or cancels a reply or something else."""
    if operation == "cancel":
        is_open = [ident for ident, known in client.known.items() if known.state == MESSAGE_STATE_OPEN]
        ids = is_open or [*client.known]
    else:
        user = client.user
        ids = [ident for ident, known in client.known.items() if known.author.user == user != ""]
    if not ids:
        return
    frame = ClientFrame()
    inner = getattr(frame, operation)
    inner.message_id = ids[pick % len(ids)]
    if operation == "edit":
        inner.parts.add().text.text = f"edited {client.edge.name} {client.connection.number} {pick}"
    client.send(frame)


def cancel(client: Client, pick: int) -> None:
    """A client cancels all replies to its last message."""
    sent = [frame.message for frame in client.waiting.values() if frame.HasField("message")]
    if sent:
        frame = ClientFrame()
        frame.cancel.client_id = sent[pick % len(sent)].id
        frame.cancel.conversation.CopyFrom(sent[pick % len(sent)].conversation)
        client.send(frame)


def signal(client: Client, operation: str, pick: int, name: str) -> None:
    """A client sends a signal that lives for a while, or ends it."""
    if topic_of(group(name)) in client.topics:
        frame = about("signal", name)
        frame.signal.name = "typing"
        if operation == "stop":
            frame.signal.end = SIGNAL_END_STOPPED
        else:
            frame.signal.ttl_ms = 1 + 20 * pick
        client.send(frame)


def receipt(client: Client, operation: str, pick: int, name: str) -> None:
    """A client has read or received everything up to about its position."""
    key = topic_of(group(name))
    place = client.topics.get(key)
    if place is not None and place.highest:
        frame = about(operation, name)
        position = getattr(frame, operation).position
        position.epoch = client.world.log.epoch(key)
        position.seq = place.highest - pick % min(3, place.highest)
        client.send(frame)


def goes(client: Client, operation: str, pick: int) -> None:
    """A client's socket breaks; perhaps it reconnects to either edge."""
    client.edge.core.gone(client.connection)
    client.is_gone = True
    if operation == "resume":
        edge = client.world.edges[pick // 4 % 2]
        edge.connect(client.user, client.connection.rollup_ms, client)


def perform(world: World, operation: str, pick: int, name: str) -> None:
    of_edge(world.edges[pick % 2], operation, pick // 2)
    of_router(world, operation, pick, name)
    of_worker(world, operation, pick, name)
    if operation in ("leave", "resume") and world.clients:
        goes(world.clients[pick % len(world.clients)], operation, pick)
    clients = [client for client in world.clients if client.connection.state is ConnectionState.OPEN]
    shown = [client for client in clients if isinstance(client, ShownClient)]
    if operation == "switch" and shown:
        sent = about("message", name) if pick % 3 else None
        shown[pick % len(shown)].switch(SO_FAR if pick % 2 else WHOLE, sent)
    elif clients:
        of_client(clients[pick % len(clients)], operation, pick // 3, name)
    world.settle()


def begun(knows_heads: bool) -> World:
    """Four clients on each edge, two of them of a dialect, two workers, and an open message."""
    world = World(knows_heads)
    for edge in world.edges:
        for pick in (0, 3, 4, 14):
            connect(edge, pick)
    world.attach()
    world.attach()
    world.workers[0].open("home", "home 0")
    world.workers[1].open("one", "one 0")
    world.run_dry()
    for edge in world.edges:
        for number in (1, 3):
            edge.clients[number].send(about("subscribe", "one"))
    world.run_dry()
    return world


def run(knows_heads: bool, performed: list[tuple[str, int, str]]) -> None:
    world = begun(knows_heads)
    for operation in performed:
        perform(world, *operation)
    world.run_dry()
    world.check()
    for worker in list(world.workers):
        world.detach(worker)
    world.tick(REPLY_LEASE_S, workers_are_heard=False)
    world.run_dry()
    world.check()
    assert not world.log.open


@settings(max_examples=400, deadline=None, database=None)
@given(st.booleans(), st.lists(operations, min_size=20, max_size=150))
def test_every_client_sees_each_topic_in_order_without_a_gap_and_all_messages_as_they_are(
    knows_heads: bool, performed: list[tuple[str, int, str]]
) -> None:
    run(knows_heads, performed)


@pytest.mark.parametrize("knows_heads", [True, False])
def test_who_connects_while_the_link_is_down_is_not_shown_what_others_have_missed(knows_heads: bool) -> None:
    world = World(knows_heads)
    one, two = world.edges
    # The router knows the topic's end by the other edge's listener.
    two.connect("u", 0)
    one.connect("u", 0)
    world.run_dry()
    one.lose(router_notices=True)
    one.connect("u", 0)
    old, new = one.clients.values()
    # The newcomer has the lower number: it waited on an earlier link already.
    one.core.connections = {new.connection.number: new.connection, old.connection.number: old.connection}
    for _ in range(3):
        world.broadcast("home")
    world.commit()
    world.report()
    world.settle()
    world.run_dry()
    world.check()
    assert old.topics[HOME].seen == [1, 2, 3]
    assert (new.topics[HOME].start, new.topics[HOME].seen) == (3, [])
