"""Any sequence of operations leaves the log as the model predicts."""

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
from trunkline.v1.message_pb2 import CHANGE_KIND_EDITED, CHANGE_KIND_ENDED, CHANGE_KIND_RECALLED
from trunkline_router.core.values.log_records import (
    Attempts,
    Checkpoint,
    DeadLettered,
    DeliveredPosition,
    HistoryLimits,
    PageRequest,
    PendingEntry,
    Producer,
    Transaction,
    Withdrawal,
)
from trunkline_router.core.values.stored_records import Backlog
from trunkline_router.core.values.topics import EMPTY, GROUP, NO_TARGET, PERSON, USER, Position, TopicKey
from trunkline_router.log import erasure_plan, pruning_plan
from trunkline_router.log.encryption import OVERHEAD
from trunkline_router.log.postgres import log_walk as postgres_log_walk
from trunkline_router.log.postgres import pruning as postgres_pruning
from trunkline_router.log.postgres import sweeper as postgres_sweeper
from trunkline_router.log.sqlite import log_walk, sweeper

from tests.router.log.engines import ENGINES, HOUR_MS, NOW_MS, change, deltas, pending_entry, position, read
from tests.router.log.erasure_model import ErasingModel
from tests.router.log.whole_erasures import erase_tenant, erase_user, prune

pytestmark = pytest.mark.long

_T = TypeVar("_T")

#: Few topics, keys and digests, so that they collide; odd names, since a topic may contain any text.
TOPICS: list[TopicKey] = [
    ("acme", "", "", NO_TARGET, ""),
    ("acme", "echo", "web", PERSON, "x"),
    ("acme", "echo", "web", GROUP, "x"),
    ("acme", "", "", USER, 'é"\\,[1] \U0001f600'),
    ("evil", "echo", "web", PERSON, "x"),
]
topics = st.sampled_from(TOPICS)
tenants = st.sampled_from(["acme", "evil"])
keys = st.sampled_from([None, None, b"a" * 16, b"b" * 16, b"\0" * 16])
digests = st.sampled_from([b"", b"one", b"two"])
USERS = ["alice", "bob", 'é"']
users = st.sampled_from(USERS)
producers = st.builds(Producer, st.sampled_from(["worker", "other"]), st.integers(1, 3))
kinds = st.sampled_from([CHANGE_KIND_ENDED, CHANGE_KIND_EDITED, CHANGE_KIND_RECALLED])
delivery_ids = st.integers(1, 20)
entries = st.builds(
    pending_entry,
    topics,
    st.text(max_size=20),
    key=keys,
    digest=digests,
    connections=st.integers(0, 9),
    deliver=st.booleans(),
    # Negative: it has expired when it is committed.
    expire_after_ms=st.sampled_from([0, 1000, -1000]),
    repeat_only=st.sampled_from([False, False, False, True]),
    producer=st.sampled_from([None, Producer("worker", 1)]),
    user=st.sampled_from(["alice", "bob"]),
)
#: Index of a message among all that ever were, counted from the newest.
picks = st.integers(0, 12)


class LogMachine(RuleBasedStateMachine):
    """One engine beside its model."""

    engine: str

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.opener = ENGINES[self.engine](Path(self.folder.name))
        self.runner = asyncio.Runner()
        self.log = self.run(self.opener())
        self.model = ErasingModel()
        self.model.overhead = OVERHEAD if self.log.can_encrypt else 0
        #: All messages ever committed, including those of erased logs.
        self.said: list[PendingEntry] = []

    def run(self, operation: Coroutine[Any, Any, _T]) -> _T:
        # Not the runner's `run`, whose handling of SIGINT takes longer than most operations.
        return self.runner.get_loop().run_until_complete(operation)

    def teardown(self) -> None:
        self.run(self.log.close())
        self.runner.close()
        self.folder.cleanup()

    def commit(self, transaction: Transaction) -> None:
        self.run(self.log.append(transaction))
        self.said += self.model.committed(transaction)

    def pick(self, number: int) -> PendingEntry | None:
        return self.said[-1 - number % len(self.said)] if self.said else None

    @rule(
        batch=st.lists(entries, max_size=6),
        settled=st.lists(delivery_ids, max_size=2),
        changes=st.lists(st.tuples(picks, kinds, st.text(max_size=300), keys, digests), max_size=3),
        reads=st.lists(st.tuples(picks, users), max_size=3),
        order=st.randoms(use_true_random=False),
    )
    def append(
        self, batch: list[PendingEntry], settled: list[int], changes: Any, reads: Any, order: Any
    ) -> None:
        for number, kind, text, key, digest in changes:
            target = self.pick(number)
            if target is not None:
                one = change(target, kind, text, key=key)
                one.digest = digest
                batch.append(one)
        for number, user in reads:
            target = self.pick(number)
            if target is not None:
                batch.append(read(target.topic, position(target), user))
        order.shuffle(batch)
        self.commit(Transaction(batch, settled))

    @rule(
        checkpoints=st.lists(
            st.tuples(picks, producers, st.lists(st.text(max_size=5), max_size=2)), max_size=4
        ),
        ends=st.lists(picks, max_size=1),
        opens=st.lists(st.tuples(topics, st.none() | picks), max_size=2),
        withdrawn=st.lists(picks, max_size=1),
    )
    def stream(self, checkpoints: Any, ends: list[int], opens: Any, withdrawn: list[int]) -> None:
        transaction = Transaction()
        for topic, number in opens:
            opened = pending_entry(topic, producer=Producer("worker", 1))
            if number is not None and (target := self.pick(number)) is not None:
                opened.topic, opened.message.reply_to = target.topic, target.message.id
                opened.message.address.CopyFrom(target.message.address)
            transaction.entries.append(opened)
        for number in withdrawn:
            target = self.pick(number)
            if target is not None:
                transaction.withdrawn.append(Withdrawal(target.topic, target.message.position.seq))
        for number, producer, texts in checkpoints:
            target = self.pick(number)
            if target is not None:
                added = deltas(*texts) if texts else b""
                seq = target.message.position.seq
                transaction.checkpoints.append(Checkpoint(target.topic, seq, producer, added))
        for number in ends:
            target = self.pick(number)
            if target is not None:
                transaction.entries.append(change(target, CHANGE_KIND_ENDED, "whole"))
        self.commit(transaction)

    @rule(
        attempts=st.lists(st.tuples(delivery_ids, st.integers(0, 5)), max_size=3),
        dead_lettered=st.lists(st.tuples(delivery_ids, st.integers(0, 5), st.text(max_size=5)), max_size=3),
        settled=st.lists(delivery_ids, max_size=1),
        withdrawn=st.lists(picks, max_size=2),
        delivered=st.lists(st.tuples(picks, users), max_size=3),
    )
    def report(
        self, attempts: Any, dead_lettered: Any, settled: list[int], withdrawn: list[int], delivered: Any
    ) -> None:
        transaction = Transaction(settled=settled)
        transaction.attempts = [Attempts(*row) for row in attempts]
        transaction.dead_lettered = [DeadLettered(*row) for row in dead_lettered]
        for number in withdrawn:
            target = self.pick(number)
            if target is not None:
                transaction.withdrawn.append(Withdrawal(target.topic, target.message.position.seq))
        for number, user in delivered:
            target = self.pick(number)
            if target is not None:
                transaction.delivered.append(DeliveredPosition(target.topic, user, position(target)))
        self.commit(transaction)

    @rule(topic=topics, wanted=st.lists(delivery_ids, max_size=5))
    def replay(self, topic: TopicKey, wanted: list[int]) -> None:
        tenant, agent = topic[:2]
        replayed = self.run(self.log.replay(tenant, agent, wanted))
        self.model.replayed(tenant, agent, wanted, replayed)

    @rule(topic=topics)
    def reset(self, topic: TopicKey) -> None:
        assert self.run(self.log.reset(topic)) == self.model.reset(topic)

    @rule(tenant=tenants)
    def erase_tenant(self, tenant: str) -> None:
        erased = self.run(erase_tenant(self.log, tenant))
        assert erased._replace(topics=tuple(sorted(erased.topics))) == self.model.erase_tenant(tenant)

    @rule(tenant=tenants, user=st.sampled_from([*USERS, "carol", "x", TOPICS[3][4]]))
    def erase_user(self, tenant: str, user: str) -> None:
        erased = self.run(erase_user(self.log, user, tenant))
        assert erased._replace(topics=tuple(sorted(erased.topics))) == self.model.erase_user(tenant, user)

    @rule(
        tenant=tenants,
        max_messages=st.sampled_from([0, 0, 1, 4]),
        max_bytes=st.sampled_from([0, 0, 1, 150, 400]),
        passed_ms=st.sampled_from([0, 0, 0, 101]),
    )
    def prune(self, tenant: str, max_messages: int, max_bytes: int, passed_ms: int) -> None:
        limits = HistoryLimits(100, max_messages, max_bytes)
        now_ms = NOW_MS + passed_ms
        gone = self.run(prune(self.log, tenant, now_ms=now_ms, **limits._asdict()))
        assert gone == self.model.prune(tenant, limits, now_ms)

    @rule(forget=st.booleans())
    def sweep(self, forget: bool) -> None:
        self.run(self.log.sweep(NOW_MS + HOUR_MS + forget))
        self.run(self.log.sweep(NOW_MS + HOUR_MS + forget))
        if forget:
            self.model.kept.clear()
            for log in self.model.logs.values():
                log.cancelled.clear()

    @rule()
    def restart(self) -> None:
        self.run(self.log.close())
        self.log = self.run(self.opener())

    @rule(
        topic=topics,
        limit=st.integers(0, 5),
        seq=st.integers(0, 12),
        side=st.sampled_from(["after", "before", ""]),
        messages_only=st.booleans(),
        max_bytes=st.integers(0, 1000),
    )
    def read(
        self, topic: TopicKey, limit: int, seq: int, side: str, messages_only: bool, max_bytes: int
    ) -> None:
        where: Any = {side: Position(self.model.head(topic).epoch, seq)} if side else {}
        request = PageRequest(topic, limit, max_bytes=max_bytes, messages_only=messages_only, **where)
        assert self.run(self.log.read([request])) == [self.model.page(request)]

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        requests = [PageRequest(topic, 1000, after=EMPTY) for topic in TOPICS]
        assert self.run(self.log.read(requests)) == [self.model.page(request) for request in requests]
        for topic in TOPICS:
            assert self.log.head(topic) in (None, self.model.head(topic))
            assert self.run(self.log.receipts(topic, "", 9)) == self.model.receipts_of(topic)
        whose = [(topic, user) for topic in TOPICS for user in USERS]
        assert self.run(self.log.delivered(whose)) == [self.model.delivered(*each) for each in whose]
        assert sorted(self.run(self.log.open_messages())) == sorted(self.model.open_messages())

    @invariant()
    def finds_messages_by_id(self) -> None:
        for one in self.said[-5:]:
            found = self.run(self.log.message(one.topic[0], one.message.id))
            assert found == self.model.message(one.topic, position(one))

    @invariant()
    def owes_what_the_model_owes(self) -> None:
        for tenant, agent in {topic[:2] for topic in TOPICS}:
            owed, dead = self.model.owed(tenant, agent), self.model.dead_letters_of(tenant, agent)
            assert self.run(self.log.deliveries(tenant, agent, 0, 1000)) == owed
            assert self.run(self.log.dead_letters(tenant, agent, 0, 1000)) == dead
            backlogs = [b for b in self.run(self.log.backlogs(tenant)) if b.agent == agent]
            waiting = self.model.waiting(tenant, agent)
            expected = Backlog(agent, waiting, NOW_MS if waiting else 0, len(dead))
            assert backlogs == ([expected] if waiting or dead else [])
            assert self.run(self.log.count_waiting(tenant, agent)) == waiting

    @rule(limit=st.integers(1, 5))
    def expire(self, limit: int) -> None:
        found, after = [], 0
        while True:
            page = self.run(self.log.expired(after, limit))
            found += page.expired
            after = page.after
            if not after:
                break
        assert found == self.model.expired()
        self.commit(Transaction(settled=[each.delivery_id for each in found]))


#: Bounds of the work done in pieces.
BOUNDS = [
    (log_walk, "LOGS"),
    (erasure_plan, "DELETED_WORK"),
    (erasure_plan, "SEARCHED_ENTRIES"),
    (erasure_plan, "ERASED_ENTRIES"),
    (pruning_plan, "ENTRIES"),
    (sweeper, "_ROWS"),
    (sweeper, "_LOGS"),
    (postgres_log_walk, "LOGS"),
    (postgres_pruning, "PROBED_ENTRIES"),
    (postgres_sweeper, "SWEPT_ROWS"),
    (postgres_sweeper, "SWEPT_LOGS"),
]


#: One run is enough with encryption, whose values differ and operations do not, and of an older version.
ONCE = ("sqlite-encrypted", "postgres-encrypted", "postgres-16")
RUNS = [(engine, bound) for engine in ENGINES for bound in (None, 2, 3) if engine not in ONCE or bound == 3]


def examples_of(engine: str, bound: int | None) -> int:
    """An operation on a server takes three times as long as on a file; `make soak` has more of both."""
    if engine.startswith("postgres"):
        return 8
    return 40 if bound is None else 20


@pytest.mark.parametrize(("engine", "bound"), RUNS)
def test_any_sequence_of_operations_agrees_with_the_model(
    engine: str, bound: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in BOUNDS if bound else ():
        monkeypatch.setattr(module, name, bound)
    machine = type("Machine", (LogMachine,), {"engine": engine})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples_of(engine, bound),
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
