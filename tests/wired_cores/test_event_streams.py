"""Event streams between an edge's core and a router's: an id is exactly its client's position."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from trunkline.v1.address_pb2 import Address
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest

from tests.wired_cores.event_client import Listener, listen
from tests.wired_cores.harness import Backend, World
from tests.wired_cores.test_machine import about, of_edge, of_router, of_worker

#: What a backend says something to, beside the conversation that all have come to.
BROAD = (
    Address(tenant="t"),
    Address(tenant="t", agent="a"),
    Address(tenant="t", agent="a", platform="web"),
    Address(tenant="t", user="u1"),
)
HAPPENINGS = {
    "carry": 10,
    "add write up down commit report look show": 5,
    "broad backend say come": 4,
    "open end wait ring": 3,
    "lose relink stall drain": 2,
    "attach detach restart slow": 1,
}
OPERATIONS = [name for names, times in HAPPENINGS.items() for name in names.split() * times]
operations = st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 63))


def broadcast(world: World, address: Address) -> None:
    request = BroadcastRequest(address=address)
    request.parts.add().text.text = "from a backend"
    world.router.publishing.publish(request, Backend())


def listeners(world: World) -> list[Listener]:
    return [client for client in world.clients if isinstance(client, Listener)]


def come_again(world: World, one: Listener, pick: int) -> Listener:
    """Break a client's connection, and reconnect it to either edge."""
    if not one.is_gone:
        one.edge.core.gone(one.connection)
        one.is_gone = True
    return listen(world.edges[pick % 2], one.user, one.connection.rollup_ms, one)


def perform(world: World, operation: str, pick: int) -> None:
    of_edge(world.edges[pick % 2], operation, pick // 2)
    of_router(world, operation, pick, "home")
    of_worker(world, operation, pick, "home")
    hearing = listeners(world)
    one = hearing[pick % len(hearing)]
    speakers = [client for client in world.clients if not isinstance(client, Listener)]
    match operation:
        case "broad":
            broadcast(world, BROAD[pick % 4])
        case "say" if speakers:
            speakers[pick % len(speakers)].send(about("message", "home"))
        case "come":
            come_again(world, one, pick // 8)
        case "stall":
            one.connection.has_backlog = True
        case "slow" if one.connection.has_backlog:
            one.edge.core.backpressure.close_slow(one.connection)
    world.settle()


def begun(knows_heads: bool) -> World:
    """One sending and two listening clients on each edge, and a worker with an open message."""
    world = World(knows_heads)
    for edge in world.edges:
        edge.connect("u1", 0)
        listen(edge, "u1", 40)
        listen(edge, "", 0)
    world.attach()
    world.workers[0].open("home", "home 0")
    world.run_dry()
    return world


@settings(max_examples=150, deadline=None, database=None)
@given(st.booleans(), st.lists(operations, min_size=20, max_size=120))
def test_who_comes_again_with_the_last_id_goes_on_exactly_there(
    knows_heads: bool, performed: list[tuple[str, int]]
) -> None:
    world = begun(knows_heads)
    for operation in performed:
        perform(world, *operation)
    world.run_dry()
    # Closed clients too, with the state they have.
    for one in listeners(world):
        come_again(world, one, 0)
    world.run_dry()
    world.check()
    # No client is ever too far behind here; only one that never connected has no position.
    assert all(one.recovered or not one.stood for one in listeners(world))


def test_an_id_comes_with_the_last_event_of_each_write_that_leads_further() -> None:
    world = World(knows_heads=True)
    one = listen(world.edges[0], "u1", 0)
    world.run_dry()
    assert one.reader.last_id == ".0~.0~.0~.0~.0"
    for address in (BROAD[3], BROAD[0], BROAD[3]):
        broadcast(world, address)
    world.run_dry()
    tenant, *_, user = one.reader.last_id.split("~")
    assert (tenant.rpartition(".")[2], user.rpartition(".")[2]) == ("1", "2")
    assert world.log.epoch(("t", "", "", 0, "")) == tenant.rpartition(".")[0]
