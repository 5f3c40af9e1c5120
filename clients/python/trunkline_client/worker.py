"""A process that serves agents: it receives what users say and answers."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import grpc
import grpc.aio
from trunkline.v1.address_pb2 import Address
from trunkline.v1.agent_service_pb2 import (
    AttachHello,
    AttachRequest,
    AttachResponse,
    AttachWelcome,
    OpenReply,
)
from trunkline.v1.agent_service_pb2_grpc import AgentServiceStub
from trunkline.v1.catalogue import CONTRACT_MINOR
from trunkline.v1.message_pb2 import Message

from trunkline_client.backoff import Backoff
from trunkline_client.bidi_stream import BidiStream
from trunkline_client.channel import error_from_rpc, open_channel
from trunkline_client.clock import Clock
from trunkline_client.delivery_table import DeliveryTable
from trunkline_client.errors import Refused
from trunkline_client.handler import Handler
from trunkline_client.message_writer import OnCancel
from trunkline_client.streamed_reply import StreamedReply
from trunkline_client.worker_stream import WorkerStream

H = TypeVar("H", bound=Handler)

log = logging.getLogger("trunkline_client")


class Worker:
    """Serves agents of one tenant, at most `capacity` messages at a time.

        worker = Worker("127.0.0.1:50051", tenant="demo", agents=["echo"])

        @worker.handler
        async def answer(message: Message) -> str:
            return f"You said: {text_of(message)}"

        await worker.run()

    What the handler returns is committed together with the message's being done. What takes longer is
    said piece by piece:

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                async for word in model(text_of(message)):
                    await out.write(word)

    Every message is handled at least once, and messages of one conversation one after the other. A
    handler that raises is called again, after 1 s, 2 s, 4 s and so on up to a minute; RetryLater and
    Reject say otherwise; after the router's limit of attempts the message becomes a dead letter. A
    handler whose streamed reply has told its readers of the failure is not called again.

    Handlers outlive the stream to the router: see `DeliveryTable`. One whose message went to another worker
    is cancelled, or gets Fenced in its streamed reply; so a handler must bear a repeat.

    A handler may be a plain function. Then it costs no task, and blocks everything else while it runs.
    Whatever blocks the event loop for longer than the router's leases (15 s while a reply is streamed)
    makes the router take the worker for dead: the reply expires, and the message is delivered again.

    With `credentials` the stream is encrypted; `api_key` is shown with it. See `load_credentials`.
    """

    def __init__(
        self,
        router: str,
        *,
        tenant: str,
        agents: Sequence[str],
        capacity: int = 64,
        worker_id: str = "",
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str = "",
        on_attached: Callable[[AttachWelcome], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._router = router
        self._hello = AttachHello(
            tenant=tenant,
            agents=agents,
            capacity=capacity,
            worker_id=worker_id or f"{socket.gethostname()[:100]}:{os.getpid()}",
            contract_minor=CONTRACT_MINOR,
        )
        self._credentials = credentials
        self._api_key = api_key
        self._on_attached = on_attached
        self._clock = clock or Clock()
        self._backoff = Backoff(self._clock.random, cap_s=2.0)
        self._handler: Handler | None = None
        self._work = DeliveryTable(self._clock)
        self._attached = True
        self._left = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Worker {self._hello.worker_id} of {self._hello.tenant} at {self._router}>"

    def handler(self, handler: H) -> H:
        """Makes a function the worker's handler; a decorator."""
        self._handler = handler
        return handler

    def reply(
        self,
        message: Message,
        *,
        name: str = "",
        attributes: Mapping[str, str] | None = None,
        on_cancel: OnCancel | None = None,
    ) -> StreamedReply:
        """A streamed reply to a message that a handler of this worker is dealing with.

        Raises ReplyCancelled where nobody wants it any longer, and Fenced where the message is not, or
        no more, in this worker's hands. The first reply to a message goes on with the first one of an
        earlier attempt, the second with the second. See StreamedReply.
        """
        return self._work.reply(message, OpenReply(name=name, attributes=dict(attributes or {})), on_cancel)

    def open_message(
        self,
        address: Address,
        *,
        key: str = "",
        reply_to: str = "",
        name: str = "",
        attributes: Mapping[str, str] | None = None,
        on_cancel: OnCancel | None = None,
    ) -> StreamedReply:
        """A streamed message to a topic of one of the worker's agents, that answers no delivery.

        Opened again with the same `key` within a day it is the same message. Only while `run` runs.
        """
        request = OpenReply(
            key=key or uuid.uuid4().hex,
            address=address,
            reply_to=reply_to,
            name=name,
            attributes=dict(attributes or {}),
        )
        return self._work.open_message(request, on_cancel)

    async def run(self, handler: Handler | None = None) -> None:
        """Serves until cancelled or drained, attaching again whenever the stream breaks.

        Raises Refused where the router refuses the worker for a reason that will not go away, such as
        UNKNOWN_TENANT. On cancel the handlers are cancelled too, and nothing is left running.
        """
        handler = handler or self._handler
        if handler is None:
            raise RuntimeError("a worker needs a handler: `@worker.handler` or `worker.run(handler)`")
        self._work.begin(handler)
        self._left.clear()
        channel = open_channel(self._router, self._credentials, self._api_key)
        serving = asyncio.create_task(self._serve(AgentServiceStub(channel)), name=f"serve {self!r}")
        leaving = asyncio.create_task(self._left.wait())
        try:
            await asyncio.wait({serving, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
        finally:
            serving.cancel()
            leaving.cancel()
            await asyncio.wait({serving, leaving})
            await self._work.close()
            await channel.close()

    async def drain(self, timeout_s: float = 30.0) -> bool:
        """Takes no more messages, waits until those in hand are settled, and lets `run` return.

        False where that took longer than `timeout_s`, or the stream to the router broke meanwhile: what
        is left then is cancelled here and delivered to another worker.
        """
        self._work.drain()
        idle = asyncio.ensure_future(self._work.idle())
        late = asyncio.ensure_future(self._clock.sleep(timeout_s))
        try:
            await asyncio.wait({idle, late}, return_when=asyncio.FIRST_COMPLETED)
            return idle.done() and self._work.is_idle
        finally:
            self._left.set()
            idle.cancel()
            late.cancel()

    async def _serve(self, stub: AgentServiceStub) -> None:
        while True:
            refusal = await self._attach(stub)
            if self._work.draining:
                return
            if not refusal.retryable:
                raise refusal
            wait_s = self._backoff.next_s(refusal.retry_after_ms / 1000)
            if self._attached:
                self._attached = False
                log.warning("not attached to %s, trying again: %s", self._router, refusal)
            await self._clock.sleep(wait_s)

    async def _attach(self, stub: AgentServiceStub) -> Refused:
        """Serves one stream until it breaks; returns why."""
        attachment = WorkerStream(self._hello, self._clock)
        stream: BidiStream[AttachRequest, AttachResponse] = BidiStream(stub.Attach(), attachment.write)
        try:
            async for response in stream:
                if response.HasField("welcome"):
                    self._welcomed(response.welcome)
                    self._work.attached(attachment, response.welcome)
                attachment.take(response)
                self._work.take(response)
        except grpc.aio.AioRpcError as error:
            return error_from_rpc(error)
        finally:
            self._work.detached()
            try:
                await stream.close()
            finally:
                await attachment.close()
        return Refused("UNAVAILABLE", "the router ended the stream", retryable=True)

    def _welcomed(self, welcome: AttachWelcome) -> None:
        self._attached = True
        self._backoff.reset()
        log.info("attached to router %s at %s", welcome.router_id, self._router)
        if self._on_attached is not None:
            self._on_attached(welcome)
