"""One stream between a worker and a router: deliveries in, settlements out."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from trunkline.v1.agent_service_pb2 import AttachHello, AttachRequest, AttachResponse, Delivery, Settlement

from trunkline_client.backoff import Timing
from trunkline_client.replies import Handler, Returned, settlement

#: A batch is closed once it is this large.
MAX_BATCH_BYTES = 1 << 20
#: The largest settlement that is sent; a larger one would break the stream, each time anew.
MAX_SETTLEMENT_BYTES = 3 << 20

log = logging.getLogger("trunkline_client")


class Attachment:
    """The work of one stream. What it has not settled when the stream breaks is delivered again.

    Its queues hold at most what the router delivers, which is the worker's capacity.
    """

    def __init__(self, hello: AttachHello, handler: Handler, timing: Timing) -> None:
        self._hello = hello
        self._handler = handler
        self._timing = timing
        self._held: dict[int, asyncio.Future[Returned]] = {}
        self._settled: deque[Settlement] = deque()
        self._has_mail = asyncio.Event()
        self._sign_due = False
        self._pulse: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Attachment {len(self._held)} held, {len(self._settled)} settled and unwritten>"

    def take(self, response: AttachResponse) -> None:
        """Deals with a batch from the router; plain functions are called here and now."""
        for delivery in response.deliveries:
            self._deliver(delivery)
        for result in response.results:
            if result.HasField("error"):
                error = result.error
                log.warning(
                    "delivery %d was not settled: %s (%s)", result.delivery_id, error.message, error.code
                )

    def keep_alive(self, lease_s: float) -> None:
        """From here on says something, and extends what is held, three times a lease."""
        if self._pulse is None:
            self._pulse = asyncio.create_task(self._beat(lease_s / 3), name="keep the lease")

    async def write(self, write: Callable[[AttachRequest], Awaitable[None]]) -> None:
        """The only writer: each batch is all that was settled while the last one was written."""
        await write(AttachRequest(hello=self._hello))
        while True:
            await self._has_mail.wait()
            self._has_mail.clear()
            while self._settled or self._sign_due:
                await write(self._next_batch())

    async def close(self) -> None:
        """Cancels the handlers that still run: what they would return can be settled no more."""
        running: list[asyncio.Future[Any]] = list(self._held.values())
        if self._pulse is not None:
            running.append(self._pulse)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    def _deliver(self, delivery: Delivery) -> None:
        delivery_id = delivery.delivery_id
        if delivery_id in self._held:
            return  # its lease ended while this process was stopped; the handler still runs
        try:
            returned = self._handler(delivery.message)
            if not inspect.isawaitable(returned):
                self._settle(delivery_id, returned)
                return
        except Exception as error:
            self._log_failure(delivery, error)
            return
        handling = asyncio.ensure_future(returned)
        self._held[delivery_id] = handling
        handling.add_done_callback(partial(self._handled, delivery))

    def _handled(self, delivery: Delivery, handling: asyncio.Future[Returned]) -> None:
        """A handler has returned, failed, or was cancelled."""
        del self._held[delivery.delivery_id]
        if handling.cancelled():
            return
        try:
            self._settle(delivery.delivery_id, handling.result())
        except Exception as error:
            self._log_failure(delivery, error)

    def _settle(self, delivery_id: int, returned: Returned) -> None:
        settled = settlement(delivery_id, returned)
        if settled.ByteSize() > MAX_SETTLEMENT_BYTES:
            raise ValueError(
                f"the replies have {settled.ByteSize()} bytes; {MAX_SETTLEMENT_BYTES} can be sent"
            )
        self._settled.append(settled)
        self._has_mail.set()

    def _log_failure(self, delivery: Delivery, error: Exception) -> None:
        log.error(
            "the handler failed on message %s (attempt %d), which will be delivered again: %s: %s",
            delivery.message.id,
            delivery.attempt,
            type(error).__name__,
            error,
        )

    def _next_batch(self) -> AttachRequest:
        """All that is settled, up to the bound of a batch, and the sign of life if it is due."""
        batch = AttachRequest()
        if self._sign_due:
            self._sign_due = False
            batch.extend.extend(self._held)
        size = 0
        while self._settled and size < MAX_BATCH_BYTES:
            settled = self._settled.popleft()
            size += settled.ByteSize()
            batch.settlements.append(settled)
        return batch

    async def _beat(self, interval_s: float) -> None:
        while True:
            await self._timing.sleep(interval_s)
            self._sign_due = True
            self._has_mail.set()
