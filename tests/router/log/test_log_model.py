"""Any sequence of operations leaves the log as a model of dicts and lists says."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from log_engines import ENGINES, HOUR_MS, NOW_MS, draft

from router.core.journal import Draft, PageRequest, Verdict
from router.core.topics import EMPTY, GROUP, NO_TARGET, PERSON, USER, Position, TopicKey

_T = TypeVar("_T")

#: Few topics, keys and digests, so that they meet; odd names, as any text may be part of a topic.
TOPICS: list[TopicKey] = [
    ("acme", "", "", NO_TARGET, ""),
    ("acme", "echo", "web", PERSON, "x"),
    ("acme", "echo", "web", GROUP, "x"),
    ("acme", "", "", USER, 'é"\\,[1] \U0001f600'),
    ("evil", "echo", "web", PERSON, "x"),
]
topics = st.sampled_from(TOPICS)
keys = st.sampled_from([None, None, b"a" * 16, b"b" * 16, b"\0" * 16])
digests = st.sampled_from([b"", b"one", b"two"])
drafts = st.builds(
    lambda topic, text, key, digest, connections, deliver: draft(
        topic, text, key=key, digest=digest, connections=connections, deliver=deliver
    ),
    topics,
    st.text(max_size=20),
    keys,
    digests,
    st.integers(0, 9),
    st.booleans(),
)


class LogModel(RuleBasedStateMachine):
    """One engine beside the model of it."""

    engine: str

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.opener = ENGINES[self.engine](Path(self.folder.name))
        self.runner = asyncio.Runner()
        self.log = self.run(self.opener())
        self.logs: dict[TopicKey, tuple[str, list[bytes]]] = {}
        self.epochs: set[str] = set()
        self.kept: dict[bytes, tuple[bytes, str, int]] = {}
        self.deliveries: dict[int, tuple[TopicKey, bytes]] = {}
        self.highest_delivery = 0

    def run(self, operation: Coroutine[Any, Any, _T]) -> _T:
        return self.runner.run(operation)

    def teardown(self) -> None:
        self.run(self.log.close())
        self.runner.close()
        self.folder.cleanup()

    @rule(batch=st.lists(drafts, max_size=6), settle=st.lists(st.integers(1, 20), max_size=3))
    def append(self, batch: list[Draft], settle: list[int]) -> None:
        self.run(self.log.append(batch, settle))
        for delivery_id in settle:
            self.deliveries.pop(delivery_id, None)
        for one in batch:
            if one.key in self.kept:
                self.check_repeat(one)
            else:
                self.check_committed(one)

    def check_repeat(self, one: Draft) -> None:
        assert one.key is not None
        digest, message_id, connections = self.kept[one.key]
        if digest == one.digest:
            assert one.verdict is Verdict.DUPLICATE
            assert (one.message.id, one.connections) == (message_id, connections)
        else:
            assert one.verdict is Verdict.MISMATCH

    def check_committed(self, one: Draft) -> None:
        assert one.verdict is Verdict.COMMITTED
        position = one.message.position
        if one.topic not in self.logs:
            assert position.epoch not in self.epochs
            self.epochs.add(position.epoch)
            self.logs[one.topic] = (position.epoch, [])
        epoch, bodies = self.logs[one.topic]
        bodies.append(one.stored)
        assert (position.epoch, position.seq) == (epoch, len(bodies))
        if one.key is not None:
            self.kept[one.key] = (one.digest, one.message.id, one.connections)
        if one.deliver:
            assert one.delivery_id > self.highest_delivery
            self.highest_delivery = one.delivery_id
            self.deliveries[one.delivery_id] = (one.topic, one.stored)

    @rule(topic=topics)
    def reset(self, topic: TopicKey) -> None:
        _, bodies = self.logs.pop(topic, ("", []))
        assert self.run(self.log.reset(topic)) == len(bodies)
        self.deliveries = {n: found for n, found in self.deliveries.items() if found[0] != topic}

    @rule(forget=st.booleans())
    def sweep(self, forget: bool) -> None:
        self.run(self.log.sweep(NOW_MS + HOUR_MS + forget))
        self.run(self.log.sweep(NOW_MS + HOUR_MS + forget))
        if forget:
            self.kept.clear()

    @rule()
    def restart(self) -> None:
        self.run(self.log.close())
        self.log = self.run(self.opener())

    @rule(
        topic=topics,
        limit=st.integers(0, 5),
        seq=st.integers(0, 8),
        side=st.sampled_from(["after", "before"]),
    )
    def read(self, topic: TopicKey, limit: int, seq: int, side: str) -> None:
        epoch, bodies = self.logs.get(topic, ("", []))
        request = PageRequest(topic, limit, **{side: Position(epoch, seq)})  # type: ignore[arg-type]
        (page,) = self.run(self.log.read([request]))
        assert page.valid == (seq <= len(bodies))
        if not page.valid:
            assert (page.messages, page.more) == ([], False)
            return
        numbered = list(enumerate(bodies, 1))
        if side == "after":
            rest = numbered[seq:]
            assert (page.messages, page.more) == (rest[:limit], len(rest) > limit)
        else:
            rest = numbered[: max(seq - 1, 0)]
            assert (page.messages, page.more) == (rest[max(len(rest) - limit, 0) :], len(rest) > limit)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        expected = [self.logs.get(topic, ("", [])) for topic in TOPICS]
        heads = [Position(epoch, len(bodies)) for epoch, bodies in expected]
        pages = self.run(self.log.read([PageRequest(topic, 1000, after=EMPTY) for topic in TOPICS]))
        assert [page.messages for page in pages] == [list(enumerate(bodies, 1)) for _, bodies in expected]
        assert [page.head for page in pages] == heads
        for topic, head in zip(TOPICS, heads, strict=True):
            assert self.log.head(topic) in (None, head)

    @invariant()
    def owes_what_the_model_owes(self) -> None:
        for tenant, agent in {topic[:2] for topic in TOPICS}:
            owed = [
                (n, topic, body)
                for n, (topic, body) in self.deliveries.items()
                if topic[:2] == (tenant, agent)
            ]
            assert self.run(self.log.deliveries(tenant, agent, 0, 1000)) == sorted(owed)
            counts = {backlog.agent: backlog.waiting for backlog in self.run(self.log.backlogs(tenant))}
            assert counts.get(agent, 0) == len(owed)


@pytest.mark.parametrize("engine", ENGINES)
def test_any_sequence_of_operations_agrees_with_the_model(engine: str) -> None:
    machine = type("Model", (LogModel,), {"engine": engine})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
