"""Deltas in a link's outbox: merged while they wait, never across other entries."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline.v1.agent_service_pb2 import AttachRequest
from trunkline.v1.message_pb2 import Delta
from trunkline_runtime import credited_batch_queue

from tests.router.core.harness.client import Client
from tests.router.core.harness.producers import Streaming
from tests.router.core.harness.router import ALICE, ROOM, Router

CONTENTS: list[Any] = [{"reasoning": "r"}, {"part": {"text": {"text": "p"}}}]


def opened(router: Router, *topics: Any) -> tuple[Streaming, list[int]]:
    """Return a worker with open replies."""
    worker = Streaming(router)
    replies = [worker.open(topic, f"k{number}") for number, topic in enumerate(topics)]
    router.run()
    worker.read()
    return worker, replies


def take_credit(client: Client) -> None:
    """Take the credit of the client's edge, so that its outbox fills."""
    assert client.edge.link is not None
    client.edge.link.outbox.credit = 0


def deltas(client: Client) -> list[tuple[int, str]]:
    """Give the edge credit. Returns index and text of each delta frame that arrives."""
    before = len(client.frames)
    assert client.edge.link is not None
    client.edge.link.outbox.credit = 1_000_000
    router: Router = client.edge.router  # type: ignore[attr-defined]
    router.carry()
    return [(f.delta.index, f.delta.text) for f in client.frames[before:] if f.HasField("delta")]


def started(*topics: Any) -> tuple[Router, Client, Streaming, list[int]]:
    """Return a client whose edge has no credit, and a worker with open replies."""
    router = Router()
    client = router.connected(ALICE, user="x")
    client.edge.router = router  # type: ignore[attr-defined]
    worker, replies = opened(router, *topics)
    take_credit(client)
    return router, client, worker, replies


def test_waiting_deltas_of_a_message_are_one_frame() -> None:
    _, client, worker, (reply,) = started(ALICE)
    worker.add(reply, 0, "a", "b")
    worker.add(reply, 2, "c")
    assert deltas(client) == [(0, "abc")]
    take_credit(client)
    worker.add(reply, 3, "d")
    assert deltas(client) == [(3, "d")], "a delta was merged into a written frame"


def test_deltas_of_two_messages_of_one_topic_keep_their_order() -> None:
    _, client, worker, (one, two) = started(ALICE, ALICE)
    worker.add(one, 0, "a", "b")
    worker.add(two, 0, "x")
    worker.add(one, 2, "c")
    assert deltas(client) == [(0, "ab"), (0, "x"), (2, "c")]


def test_deltas_of_two_topics_are_merged_separately() -> None:
    router, client, worker, (one, two) = started(ALICE, ROOM)
    other = client.edge.new_client(ROOM, "")
    other.edge.open(other)
    client.edge.link.outbox.credit = 100  # type: ignore[union-attr]
    router.run()
    take_credit(client)
    for index in range(3):
        worker.add(one, index, "a")
        worker.add(two, index, "x")
    assert deltas(client) == [(0, "aaa")]
    assert [f.delta.text for f in other.frames if f.HasField("delta")] == ["xxx"]


@pytest.mark.parametrize("content", CONTENTS)
def test_only_text_is_merged_into_text(content: Any) -> None:
    _, client, worker, (reply,) = started(ALICE)
    worker.add(reply, 0, "a")
    batch = AttachRequest()
    added = batch.deltas.add(reply=reply)
    added.deltas.extend([Delta(index=1, **content), Delta(index=2, **content)])
    worker.send(batch)
    worker.add(reply, 3, "b")
    assert deltas(client) == [(0, "a"), (1, ""), (2, ""), (3, "b")]


@pytest.mark.parametrize("between", ["join", "message", "change", "read", "answer"])
def test_deltas_are_not_merged_across_other_entries(between: str) -> None:
    router, client, worker, (reply,) = started(ALICE)
    if between == "read":
        router.broadcast(ALICE, "before")
        router.run()
    if between == "change":
        second = worker.open(ALICE, "other")
        router.run()
        worker.read()
    worker.add(reply, 0, "a")
    late = None
    if between == "join":
        late = client.edge.new_client(ALICE, "y")
        client.edge.open(late)
    elif between == "message":
        router.broadcast(ALICE, "between")
    elif between == "change":
        worker.end(second)
    elif between == "read":
        position = router.log.head(ALICE).to_proto()
        router.frame(client, read={"position": position})
    else:
        router.frame(client, history={})
    router.run()
    worker.add(reply, 1, "b")
    assert deltas(client) == [(0, "a"), (1, "b")]
    # The clients check that nothing is missing or repeated.
    assert late is None or late.text("e1-1") == "ab"


def test_a_merged_frame_does_not_grow_beyond_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credited_batch_queue, "MAX_BATCH_BYTES", 200)
    _, client, worker, (reply,) = started(ALICE)
    for index in range(40):
        worker.add(reply, index, "0123456789")
    found = deltas(client)
    assert "".join(text for _, text in found) == "0123456789" * 40
    assert max(len(text) for _, text in found) <= 200
    assert len(found) > 1


def test_a_full_outbox_blocks_the_worker_that_fills_it() -> None:
    router = Router(outbox_max_bytes=500)
    client = router.connected(ALICE)
    worker, (reply,) = opened(router, ALICE)
    take_credit(client)
    worker.add(reply, 0, "x" * 600)
    assert not router.core.may_send(worker.worker.blocked_by)
    client.edge.link.outbox.credit = 10  # type: ignore[union-attr]
    router.carry()
    assert router.core.may_send(worker.worker.blocked_by)


def test_deltas_beyond_the_checkpoint_size_are_checkpointed_at_once() -> None:
    router = Router(checkpoint_bytes=50)
    worker, (reply,) = opened(router, ALICE)
    worker.add(reply, 0, "x" * 20)
    assert not router.core.effects.commit_queue
    worker.add(reply, 1, "x" * 20)
    assert router.core.effects.commit_queue
    router.run()
    worker.read()
    assert (worker.progress[-1].next_index, worker.progress[-1].durable_index) == (2, 2)
