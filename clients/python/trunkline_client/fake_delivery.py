"""Deliveries and replies as a test of a worker sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from trunkline.v1.agent_service_pb2 import Delivery, Settlement
from trunkline.v1.error_pb2 import Error
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_EXPIRED,
    MESSAGE_STATE_OPEN,
    Delta,
    Message,
    MessageState,
)

from trunkline_client.accumulator import Accumulator
from trunkline_client.builders import text_of

#: Bound of each wait of a test.
WAIT_S = 10.0


class FakeObservation:
    """Something that changes while a test waits for it."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Wakes those who wait."""
        self._changed.set()

    async def wait_until(self, condition: Callable[[], object]) -> None:
        """Waits until the condition is true. Raises AssertionError after 10 s."""
        try:
            async with asyncio.timeout(WAIT_S):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"nothing more happened for {WAIT_S:g} s to {self!r}") from None


class FakeReply(FakeObservation):
    """A message of the worker, streamed or returned."""

    def __init__(self, message: Message, key: str = "") -> None:
        super().__init__()
        self.key = key
        self._whole = Accumulator(message)

    def __repr__(self) -> str:
        return f"<FakeReply {MessageState.Name(self.state)} {self.text!r}>"

    @property
    def message(self) -> Message:
        """The message so far."""
        return self._whole.message

    @property
    def text(self) -> str:
        """The text so far."""
        return text_of(self.message)

    @property
    def state(self) -> MessageState.ValueType:
        """The state: OPEN while it is being written."""
        return self.message.state

    @property
    def error(self) -> Error:
        """The reason for a FAILED reply, as its readers get it."""
        return self.message.error

    async def wait(self) -> FakeReply:
        """Waits until the reply has ended; returns it."""
        await self.wait_until(lambda: self.state != MESSAGE_STATE_OPEN)
        return self

    async def wait_for_text(self, text: str) -> FakeReply:
        """Waits until the reply contains a text; returns it."""
        await self.wait_until(lambda: text in self.text)
        return self

    def extend(self, delta: Delta) -> None:
        """Adds the worker's next delta."""
        self._whole.add(delta)
        self.message.next_index += 1
        self.changed()

    def end(self, state: MessageState.ValueType, error: Error | None = None) -> None:
        """Ends the reply, unless it has ended: the first end wins."""
        if self.state == MESSAGE_STATE_OPEN:
            self.message.state = state
            if error is not None:
                self.message.error.CopyFrom(error)
        self.changed()


class FakeDelivery(FakeObservation):
    """A message that a test delivered to the worker, its replies and its settlement."""

    def __init__(
        self,
        delivery: Delivery,
        notify: Callable[[FakeDelivery], Awaitable[None]],
        redeliver: Callable[[FakeDelivery], Awaitable[None]],
    ) -> None:
        super().__init__()
        self.delivery = delivery
        #: Replies in the order in which they were opened or committed.
        self.replies: list[FakeReply] = []
        #: `ack`, `retry` or `reject` once the worker has settled the delivery; empty before.
        self.outcome = ""
        #: Reason of a retry or a rejection.
        self.reason = ""
        #: Delay that the worker asked for with a retry.
        self.retry_after_s = 0.0
        self.cancelled = False
        self._notify = notify
        self._redeliver = redeliver

    def __repr__(self) -> str:
        return f"<FakeDelivery of {text_of(self.message)!r} {self.outcome or 'unsettled'} {self.replies}>"

    @property
    def message(self) -> Message:
        """The message that was delivered."""
        return self.delivery.message

    @property
    def attempt(self) -> int:
        """Number of the attempt, from 1."""
        return self.delivery.attempt

    async def wait(self) -> FakeDelivery:
        """Waits until the worker has settled the delivery; returns it."""
        await self.wait_until(lambda: self.outcome)
        return self

    async def reply(self, number: int = 1) -> FakeReply:
        """Waits until the worker has made its first, or another, reply; returns it."""
        await self.wait_until(lambda: len(self.replies) >= number)
        return self.replies[number - 1]

    async def cancel(self) -> None:
        """Cancels the replies, as readers do."""
        self.cancelled = True
        for each in self.replies:
            each.end(MESSAGE_STATE_CANCELLED)
        await self._notify(self)

    async def expire(self) -> None:
        """Ends the open replies EXPIRED, as a router does that hears nothing for the lease of a reply."""
        for each in self.replies:
            each.end(MESSAGE_STATE_EXPIRED)
        await self._notify(self)

    async def redeliver(self) -> None:
        """Delivers the message again, after a retry: open replies continue."""
        assert self.outcome == "retry", f"only a retry is redelivered: {self!r}"
        self.delivery.attempt += 1
        self.outcome = ""
        await self._redeliver(self)

    def settle(self, settlement: Settlement) -> None:
        """Records the worker's settlement."""
        outcome = settlement.WhichOneof("outcome")
        self.outcome = "ack" if outcome is None or self.cancelled else outcome
        self.reason = settlement.reject.reason or settlement.retry.reason
        self.retry_after_s = settlement.retry.after_ms / 1000
        self.changed()
