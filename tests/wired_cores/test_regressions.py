"""Faults that the state machine in test_machine found, step by step."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from trunkline.v1.edge_service_pb2 import LinkResponse
from trunkline.v1.frame_pb2 import ClientFrame
from trunkline.v1.message_pb2 import CHANGE_KIND_RECALLED, ChangeKind

from tests.wired_cores.client import HOME
from tests.wired_cores.harness import World
from tests.wired_cores.test_machine import about


def steps(world: World, *names: str) -> None:
    """Run these steps of the world, each followed by its consequences."""
    for name in names:
        assert getattr(world, name)(), name
        world.settle()


@pytest.mark.parametrize("knows_heads", [True, False])
def test_who_joins_is_not_told_again_what_one_said_who_went_before_the_ack(knows_heads: bool) -> None:
    world = World(knows_heads)
    one, _ = world.edges
    author = one.connect("u1", 0)
    world.run_dry()
    author.send(about("message", "home"))
    one.write()
    one.arrive_up()
    steps(world, "commit", "report")
    late = one.connect("u2", 0)
    one.write()
    one.arrive_up()
    # The ack advances the topic at the edge, even if nobody is left to receive it.
    one.core.gone(author.connection)
    author.is_gone = True
    world.run_dry()
    assert late.topics[HOME].start == 1
    one.lose(router_notices=True)
    world.run_dry()
    world.check()
    assert late.topics[HOME].seen == []


def test_a_recall_that_is_committed_during_a_catch_up_carries_no_message() -> None:
    world = World(knows_heads=True)
    one, two = world.edges
    author = one.connect("u1", 0)
    two.connect("u2", 0)
    world.run_dry()
    author.send(about("message", "home"))
    world.run_dry()
    two.lose(router_notices=True)
    world.broadcast("home")
    steps(world, "commit", "report")
    recall = ClientFrame()
    recall.recall.message_id = world.log.messages(HOME)[0].id
    author.send(recall)
    two.relink()
    for edge in (one, two):
        edge.write()
        edge.arrive_up()
    # The message is read, then the page that the edge has missed; then it is recalled.
    steps(world, "look", "show", "look", "commit", "report", "show")
    two.write()
    assert CHANGE_KIND_RECALLED in recalls(two.to_edge)
    world.run_dry()
    world.check()


def recalls(batches: Iterable[LinkResponse]) -> list[ChangeKind.ValueType]:
    """Return the kinds of the changes in flight; a recall among them carries no message."""
    kinds = []
    for batch in batches:
        for entry in batch.entries:
            if entry.HasField("publish") and entry.publish.frame.HasField("change"):
                change = entry.publish.frame.change
                assert change.kind != CHANGE_KIND_RECALLED or not change.HasField("message")
                kinds.append(change.kind)
    return kinds
