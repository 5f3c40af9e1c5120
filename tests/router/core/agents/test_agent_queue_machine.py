"""State machine of an agent's queue with a log and workers: no delivery is lost or leased twice."""

from __future__ import annotations

from collections import defaultdict
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import AttachHello, AttachRequest
from trunkline.v1.message_pb2 import WithoutWorker
from trunkline.v1.tenant_pb2 import OPENNESS_ANYBODY, AgentSettings, TenantSettings
from trunkline_router.core.agents import agent_queue, dispatcher
from trunkline_router.core.agents.lanes import author_of
from trunkline_router.core.agents.worker import AttachedWorker
from trunkline_router.core.values.stored_records import StoredDelivery
from trunkline_router.core.values.topics import PERSON, TopicKey

from tests.router.core.harness.invariants import check_agents
from tests.router.core.harness.router import Router

KEYS: list[TopicKey] = [("t", "a", "w", PERSON, name) for name in ("p1", "p2", "p3")]
#: Some deliveries expire between two ticks.
EXPIRE_AFTER_S = 8
USERS = ["x", "y", "z"]
STEPS = ["write", "report_commit", "read_log", "return_reads", "fail", "fail_read"]


def settlement(number: int) -> AttachRequest:
    """Return a batch that settles a delivery with one reply."""
    batch = AttachRequest()
    batch.settlements.add(delivery_id=number).replies.add().parts.add().text.text = "r"
    return batch


class DeliveriesMachine(RuleBasedStateMachine):
    """`hands` holds each worker's own view of its deliveries, which it trusts until their leases end.

    It keeps their authors: with a concurrency above 1 only the deliveries of one author wait for each other.
    """

    def __init__(self) -> None:
        super().__init__()
        self.workers: list[AttachedWorker] = []
        self.hands: dict[AttachedWorker, dict[int, tuple[TopicKey, str, float]]] = defaultdict(dict)
        self.settling: dict[int, AttachedWorker] = {}
        self.done: dict[TopicKey, list[int]] = defaultdict(list)
        #: Deliveries whose results are those of retries.
        self.retried: set[int] = set()
        self.replies: dict[int, int] = defaultdict(int)
        self.window = [patch.object(dispatcher, "READ_DELIVERIES", 2), patch.object(agent_queue, "WINDOW", 4)]
        for patched in self.window:
            patched.start()

    @initialize()
    def start(self) -> None:
        # Dead letters are tested in test_dead_letters.
        self.router = Router(max_attempts=1_000_000)
        self.concurrency = 1
        #: The highest of all: deliveries that are held when it changes stay so.
        self.highest = 1
        self.set_settings(1)

    def set_settings(self, concurrency: int) -> None:
        defaults = AgentSettings(expire_after_s=EXPIRE_AFTER_S, concurrency=concurrency, max_attempts=1000)
        self.router.declare("t", TenantSettings(open_to=OPENNESS_ANYBODY, agent_defaults=defaults))

    @rule(
        key=st.sampled_from(KEYS),
        users=st.lists(st.sampled_from(USERS), min_size=1, max_size=4),
        choice=st.sampled_from(WithoutWorker.values()),
        is_stored=st.booleans(),
    )
    def ask(self, key: TopicKey, users: list[str], choice: int, is_stored: bool) -> None:
        for user in users:
            author = {"role": "ROLE_USER", "user": user}
            self.router.broadcast(key, "question", author=author, without_worker=choice)
        if is_stored:
            # Few steps would do all that is needed before a worker has a delivery.
            self.router.run()
            if not self.workers:
                self.attach(3)
            self.carry()

    @rule(concurrency=st.sampled_from([1, 2, 2, 5]))
    def set_concurrency(self, concurrency: int) -> None:
        self.concurrency, self.highest = concurrency, max(self.highest, concurrency)
        self.set_settings(concurrency)
        self.carry()

    @rule(limit=st.integers(1, 3))
    def sweep(self, limit: int) -> None:
        self.router.sweep(limit)
        self.carry()

    def has_expired(self, delivery: StoredDelivery) -> bool:
        return 0 < delivery.expires_ms <= self.router.now * 1000

    @rule(capacity=st.integers(1, 3))
    def attach(self, capacity: int) -> None:
        minor = catalogue.CONTRACT_MINOR
        hello = AttachHello(tenant="t", agents=["a"], capacity=capacity, contract_minor=minor)
        worker = self.router.core.worker_attached(hello, self.router.now)
        self.router.core.worker_welcomed(worker)
        self.workers.append(worker)
        self.carry()

    def carry(self) -> None:
        """Workers read what waits for them."""
        self.router.carry()
        # All results first: one worker's settlement may free what another waits for.
        batches = [(w, batch) for w in self.workers for batch in iter(w.take, None)]
        for worker, batch in batches:
            for result in batch.results:
                self.check_result(worker, result)
        for worker, batch in batches:
            for delivery in batch.deliveries:
                self.got(worker, delivery)

    def got(self, worker: AttachedWorker, delivery: Any) -> None:
        """Check that no worker holds it or its author's others, and that those before it are settled."""
        number, address, user = delivery.delivery_id, delivery.message.address, delivery.message.author.user
        key = ("t", "a", "w", PERSON, address.conversation.id)
        now = self.router.now
        stored = self.router.log.unsettled[number]
        assert delivery.attempt > 1 or not self.has_expired(stored), "it has expired"
        count = 1
        for other in self.workers:
            for held, (topic, author, lease_ends) in self.hands[other].items():
                is_held = (lease_ends > now or held in self.settling) and topic == key and held != number
                count += is_held
                if is_held:
                    assert self.highest > 1, f"{held} and {number} of one conversation are held"
                    assert author != user, f"{held} and {number} of one author are held"
        assert count <= self.highest
        for hands in self.hands.values():
            hands.pop(number, None)
        before = [d for d in self.router.log.unsettled.values() if d.topic == key and d.delivery_id < number]
        if self.concurrency > 1:
            before = [d for d in before if author_of(d) == user]
        assert all(map(self.has_expired, before)), "out of order"
        self.hands[worker][number] = (key, user, now + 5.0)

    def check_result(self, worker: AttachedWorker, result: Any) -> None:
        """Check that it is settled with all its replies, or not at all, or that its lease has ended."""
        number = result.delivery_id
        if number in self.retried:
            self.retried.remove(number)
        elif not result.HasField("error"):
            assert number not in self.router.log.unsettled
            assert len(result.replies) == 1
            self.hands[worker].pop(number, None)
        elif result.error.code == catalogue.DELIVERY_NOT_HELD.code:
            self.hands[worker].pop(number, None)
        if self.settling.get(number) is worker:
            del self.settling[number]

    @rule(data=st.data(), how=st.lists(st.sampled_from([-1, -1, 0, 1, 3000]), min_size=1, max_size=3))
    def settle(self, data: Any, how: list[int]) -> None:
        """Workers settle deliveries by a reply, or ask for another attempt after so many milliseconds."""
        for after_ms in how:
            held = [(w, n) for w in self.workers for n in self.hands[w] if n not in self.settling]
            if not held:
                return
            worker, number = data.draw(st.sampled_from(held))
            if after_ms < 0:
                batch = settlement(number)
                if number in worker.held:
                    self.settling[number] = worker
            else:
                batch = AttachRequest()
                batch.settlements.add(delivery_id=number).retry.after_ms = after_ms
                self.hands[worker].pop(number)
                self.retried.add(number)
            self.router.core.worker_received(worker, batch, self.router.now)
            self.carry()

    @rule(data=st.data())
    def extend(self, data: Any) -> None:
        if self.workers:
            worker = data.draw(st.sampled_from(self.workers))
            for number in worker.held:
                if number in self.hands[worker]:
                    topic, user, _ = self.hands[worker][number]
                    self.hands[worker][number] = (topic, user, self.router.now + 5.0)
            self.router.core.worker_received(worker, AttachRequest(extend=list(worker.held)), self.router.now)
            self.carry()

    @rule(data=st.data())
    def detach(self, data: Any) -> None:
        if self.workers:
            self.gone(data.draw(st.sampled_from(self.workers)))

    def gone(self, worker: AttachedWorker) -> None:
        self.workers.remove(worker)
        self.hands.pop(worker, None)
        self.settling = {n: w for n, w in self.settling.items() if w is not worker}
        self.router.core.worker_detached(worker, self.router.now)
        self.carry()

    @rule(seconds=st.sampled_from([0.5, 3.0, 6.0]), alive=st.booleans())
    def tick(self, seconds: float, alive: bool) -> None:
        for worker in self.workers:
            if alive:
                worker.heard_at = self.router.now + seconds
        for peer, _ in self.router.tick(seconds):
            self.gone(peer)
        self.carry()

    @rule(steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=6))
    def step(self, steps: list[str]) -> None:
        for step in steps:
            getattr(self.router, step)()
            self.carry()

    @rule(key=st.sampled_from(KEYS))
    def reset(self, key: TopicKey) -> None:
        while self.router.written:
            self.router.report_commit()
        self.carry()
        self.router.reset(key)
        for hands in self.hands.values():
            for number in [n for n, (topic, _, _) in hands.items() if topic == key]:
                self.settling.pop(number, None)
        self.carry()

    @invariant()
    def bounds_are_kept(self) -> None:
        if not hasattr(self, "router"):
            return
        check_agents(self.router.core, at_rest=False)

    def teardown(self) -> None:
        """Check that a worker that settles everything settles all deliveries."""
        try:
            if hasattr(self, "router"):
                self.finish()
        finally:
            for patched in self.window:
                patched.stop()

    def finish(self) -> None:
        for worker in list(self.workers):
            self.gone(worker)
        self.router.run()
        self.attach(3)
        (worker,) = self.workers
        for _ in range(400):
            self.tick(0.5, alive=True)
            self.router.sweep()
            self.router.run()
            self.carry()
            if not self.router.log.unsettled:
                return
            for number in list(self.hands[worker]):
                self.router.core.worker_received(worker, settlement(number), self.router.now)
        raise AssertionError(f"never dispatched: {sorted(self.router.log.unsettled)}")


DeliveriesMachine.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
test_nothing_is_lost_or_held_twice = DeliveriesMachine.TestCase
