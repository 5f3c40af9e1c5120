"""Lanes: the order in which the waiting deliveries of an agent may be leased. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from itertools import takewhile
from typing import TypeAlias

from trunkline.v1.message_pb2 import Message

from trunkline_router.core.agents.worker import LeasedDelivery
from trunkline_router.core.values.stored_records import StoredDelivery
from trunkline_router.core.values.topics import TopicKey

#: A conversation's topic, with the author if the conversation has several lanes.
Lane: TypeAlias = "tuple[str | int, ...]"

_TOPIC_FIELDS = 5
#: Delays that ended early are removed once there are more of them than this, and than others.
_STALE_DELAYS = 1000


class Lanes:
    """Waiting deliveries by lane. Of each lane one delivery at a time is leased, or delayed after a failure.

    With a `concurrency` of 1 a conversation is one lane. With more it has a lane for each author, and at most
    `concurrency` of its deliveries are leased; delayed ones do not count. Messages without an author's name
    share a lane. Bounded by the window of the queue.
    """

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        #: In order of their ids.
        self.waiting: dict[Lane, deque[StoredDelivery]] = {}
        #: Lanes with a delivery that may be leased. One that no longer has any is skipped.
        self.ready: deque[Lane] = deque()
        #: Number of leased deliveries, plus 1 while the lane is delayed. After a change of
        #: concurrency there may be several.
        self.busy: dict[Lane, int] = {}
        #: Lanes that wait for another attempt, with the time when it may start. They are busy.
        self.delayed: dict[Lane, float] = {}
        self._delays: list[tuple[float, Lane]] = []
        #: With several lanes a conversation: those in which deliveries wait, the number of leased deliveries,
        #: and ready lanes beyond the concurrency.
        self._waiting_of: dict[Lane, dict[Lane, None]] = {}
        self._leased: dict[Lane, int] = {}
        self._excess: dict[Lane, deque[Lane]] = {}

    def lane_of(self, delivery: StoredDelivery) -> Lane:
        """Return the lane of a delivery; parses the message unless conversations are lanes."""
        return delivery.topic if self.concurrency == 1 else (*delivery.topic, author_of(delivery))

    def lanes_of(self, topic: TopicKey) -> list[Lane]:
        """Return the lanes of a conversation in which deliveries wait."""
        if self.concurrency == 1:
            return [topic] if topic in self.waiting else []
        return list(self._waiting_of.get(topic, ()))

    def __iter__(self) -> Iterator[StoredDelivery]:
        return (delivery for deliveries in self.waiting.values() for delivery in deliveries)

    # Waiting

    def add(self, delivery: StoredDelivery) -> None:
        """Let a delivery wait behind all others."""
        lane = self.lane_of(delivery)
        deliveries = self.waiting.get(lane)
        if deliveries is not None:
            deliveries.append(delivery)
            return
        self.waiting[lane] = deque([delivery])
        if self.concurrency > 1:
            self._waiting_of.setdefault(delivery.topic, {})[lane] = None
        if lane not in self.busy:
            self.ready.append(lane)

    def put_back(self, delivery: StoredDelivery) -> None:
        """Let a delivery wait again, before later ones of its lane."""
        lane = self.lane_of(delivery)
        deliveries = self.waiting.get(lane)
        if deliveries is None:
            self.add(delivery)
            return
        earlier = takewhile(lambda each: each.delivery_id < delivery.delivery_id, deliveries)
        deliveries.insert(sum(1 for _ in earlier), delivery)

    def remove(self, lane: Lane, deliveries: Iterable[StoredDelivery]) -> None:
        """Remove waiting deliveries of a lane, whose delay ends if any of them had failed before."""
        removed = list(deliveries)
        for delivery in removed:
            self.waiting[lane].remove(delivery)
        if not self.waiting[lane]:
            self._forget(lane)
        if any(delivery.attempts for delivery in removed) and self.delayed.pop(lane, None) is not None:
            self.free(lane)

    def _forget(self, lane: Lane) -> None:
        """Forget a lane in which nothing waits."""
        del self.waiting[lane]
        if self.concurrency > 1:
            lanes = self._waiting_of[lane[:_TOPIC_FIELDS]]
            del lanes[lane]
            if not lanes:
                del self._waiting_of[lane[:_TOPIC_FIELDS]]

    # Leasing

    def take(self) -> tuple[Lane, StoredDelivery] | None:
        """Remove and return the next delivery to lease, which makes its lane busy; None if there is none."""
        while self.ready:
            lane = self.ready.popleft()
            deliveries = self.waiting.get(lane)
            if deliveries is None or lane in self.busy:
                self._admit(lane)
                continue
            if self.concurrency > 1 and not self._has_room(lane):
                continue
            delivery = deliveries.popleft()
            if not deliveries:
                self._forget(lane)
            self.busy[lane] = 1
            return lane, delivery
        return None

    def _has_room(self, lane: Lane) -> bool:
        """Count a lease of the lane's conversation, or let the lane wait for one to end."""
        topic = lane[:_TOPIC_FIELDS]
        leased = self._leased.get(topic, 0)
        if leased >= self.concurrency:
            self._excess.setdefault(topic, deque()).append(lane)
            return False
        self._leased[topic] = leased + 1
        return True

    def _admit(self, lane: Lane) -> None:
        """Let a lane go first that waited for its conversation to have room."""
        topic = lane[:_TOPIC_FIELDS]
        if excess := self._excess.get(topic):
            self.ready.appendleft(excess.popleft())
            if not excess:
                del self._excess[topic]

    def release(self, lane: Lane) -> None:
        """A lease of the lane has ended; call `free` or `delay` next."""
        if not self._leased:
            return
        topic = lane[:_TOPIC_FIELDS]
        leased = self._leased.pop(topic, 0)
        if leased > 1:
            self._leased[topic] = leased - 1
        if leased:
            self._admit(lane)

    def free(self, lane: Lane) -> None:
        """Let the next delivery of a lane be leased."""
        left = self.busy.pop(lane, 0) - 1
        if left > 0:
            self.busy[lane] = left
        elif lane in self.waiting:
            self.ready.append(lane)

    # Delays

    def delay(self, lane: Lane, not_before: float) -> None:
        """Let the next delivery of a lane be leased from this time on."""
        if lane in self.delayed:
            self.free(lane)
            not_before = max(not_before, self.delayed[lane])
        self.delayed[lane] = not_before
        if len(self._delays) > len(self.delayed) * 2 + _STALE_DELAYS:
            self._delays = [(time, each) for each, time in self.delayed.items() if each != lane]
            heapify(self._delays)
        heappush(self._delays, (not_before, lane))

    def end_delays(self, now: float) -> bool:
        """Free the lanes whose delay has passed. Return whether there were any."""
        are_any = False
        while self._delays and self._delays[0][0] <= now:
            not_before, lane = heappop(self._delays)
            if self.delayed.get(lane) == not_before:
                del self.delayed[lane]
                self.free(lane)
                are_any = True
        return are_any

    # Settings

    def rearranged(self, concurrency: int, leased: Iterable[LeasedDelivery]) -> Lanes:
        """Return the same deliveries in the lanes of another concurrency, and put the leased ones there."""
        lanes = Lanes(concurrency)
        for each in leased:
            each.lane = lanes.lane_of(each.delivery)
            lanes.busy[each.lane] = lanes.busy.get(each.lane, 0) + 1
            if concurrency > 1:
                topic = each.delivery.topic
                lanes._leased[topic] = lanes._leased.get(topic, 0) + 1
        for delayed, not_before in self.delayed.items():
            # Not the lane of the first: another author's may wait before the one that has failed.
            for lane in {lanes.lane_of(each) for each in self.waiting[delayed] if each.attempts}:
                lanes.busy[lane] = lanes.busy.get(lane, 0) + 1
                lanes.delay(lane, not_before)
        for delivery in sorted(self, key=lambda delivery: delivery.delivery_id):
            lanes.add(delivery)
        return lanes


def author_of(delivery: StoredDelivery) -> str:
    """Return the user who wrote the message; parses it."""
    return Message.FromString(delivery.message).author.user
