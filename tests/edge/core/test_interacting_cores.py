"""An edge's core and a router's, wired to each other: whatever breaks, no client sees a gap."""

from __future__ import annotations

import pytest
from edge_core_world import group
from hypothesis import given, settings
from hypothesis import strategies as st
from trunkline.v1.frame_pb2 import ClientFrame
from two_cores import Client, EdgeSide, World

from edge.core.connection import State

NAMES = ("home", "one", "two")
STEPS = ("write", "up", "down", "commit", "read", "read done")
OPERATIONS = (*STEPS * 3, "connect", "say", "say", "subscribe", "unsubscribe", "leave", "resume", "backend")
BREAKS = ("lose", "relink", "relink", "restart")

operations = st.tuples(st.sampled_from((*OPERATIONS, *BREAKS)), st.integers(0, 20), st.sampled_from(NAMES))


def about(kind: str, name: str) -> ClientFrame:
    frame = ClientFrame()
    inner = getattr(frame, kind)
    inner.conversation.CopyFrom(group(name).conversation)
    if kind == "message":
        inner.parts.add().text.text = "hello"
    return frame


def of_edge(edge: EdgeSide, operation: str, pick: int) -> None:
    """What happens between an edge and its router."""
    match operation:
        case "write":
            edge.write()
        case "up":
            edge.arrive_up()
        case "down":
            edge.arrive_down()
        case "connect":
            edge.connect([])
        case "lose":
            edge.lose(router_notices=pick % 3 > 0)
        case "relink":
            edge.relink()


def of_router(world: World, operation: str, pick: int, name: str) -> None:
    """What happens in and behind the router."""
    match operation:
        case "commit":
            world.commit()
        case "read":
            world.start_reads()
        case "read done":
            world.end_read()
        case "backend":
            world.broadcast(name)
        case "restart" if pick % 3 == 0:
            world.restart_router()


def of_client(client: Client, operation: str, name: str) -> None:
    """What a client that is connected does."""
    if operation == "say":
        client.send(about("message", name))
    elif operation in ("subscribe", "unsubscribe") and name != "home":
        client.send(about(operation, name))
    elif operation in ("leave", "resume"):
        client.edge.core.gone(client.connection)
        if operation == "resume":
            client.edge.connect(client.positions)


def perform(world: World, operation: str, pick: int, name: str) -> None:
    of_edge(world.edges[pick % 2], operation, pick)
    of_router(world, operation, pick, name)
    clients = [client for client in world.clients if client.connection.state is State.OPEN]
    if clients:
        of_client(clients[pick % len(clients)], operation, name)
    world.settle()


def check(world: World) -> None:
    for client in world.clients:
        assert client.closed_for in ("", "POSITION_LOST")
        if client.connection.state is State.OPEN:
            assert client.is_connected
            assert client.missing() == {}
            assert set(client.asked.values()) <= {1}, client.asked


def run(knows_heads: bool, performed: list[tuple[str, int, str]]) -> None:
    world = World(knows_heads)
    for edge in world.edges:
        edge.connect([])
        edge.connect([])
    world.run_dry()
    for operation in performed:
        perform(world, *operation)
    world.run_dry()
    check(world)


@settings(max_examples=250, deadline=None, database=None)
@given(st.booleans(), st.lists(operations, min_size=20, max_size=120))
def test_every_client_sees_each_topic_in_order_without_a_gap_and_one_answer_to_each_request(
    knows_heads: bool, performed: list[tuple[str, int, str]]
) -> None:
    run(knows_heads, performed)


@pytest.mark.parametrize("knows_heads", [True, False])
def test_who_connects_while_the_link_is_down_is_not_shown_what_others_have_missed(knows_heads: bool) -> None:
    world = World(knows_heads)
    one, two = world.edges
    # The router knows the topic's end by the other edge's listener.
    two.connect([])
    one.connect([])
    world.run_dry()
    one.lose(router_notices=True)
    one.connect([])
    old, new = one.clients.values()
    # The newcomer has the lower number: it waited on an earlier link already.
    one.core.connections = {new.connection.number: new.connection, old.connection.number: old.connection}
    for _ in range(3):
        world.broadcast("home")
    world.commit()
    world.settle()
    world.run_dry()
    check(world)
    home = group("home").SerializeToString()
    assert old.topics[home][1] == [1, 2, 3]
    assert new.topics[home] == (3, [], set())
