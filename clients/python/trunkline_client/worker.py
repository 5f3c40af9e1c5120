"""A worker: a process that serves agents. It handles the messages of users, and replies."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar, cast

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
from trunkline_client.channel import describe_proxy, open_channel
from trunkline_client.clock import Clock
from trunkline_client.delivery_table import DeliveryTable
from trunkline_client.errors import Refused, TransportError, Unreachable
from trunkline_client.following_channel import FollowingChannel
from trunkline_client.handler import Handler
from trunkline_client.interruptible_block import OnCancel
from trunkline_client.router_choice import RouterChoice, StreamRetries, is_refusal_of_standby
from trunkline_client.rpc_errors import error_from_rpc
from trunkline_client.streamed_reply import StreamedReply
from trunkline_client.takeover_watch import MOVED, TakeoverWatch
from trunkline_client.worker_stream import WorkerStream

H = TypeVar("H", bound=Handler)

log = logging.getLogger("trunkline_client")


class Worker:
    """Serves agents of one tenant.

        worker = Worker("127.0.0.1:50051", tenant="demo", agents=["echo"])

        @worker.handler
        async def answer(message: Message) -> str:
            return f"You said: {text_of(message)}"

        await worker.run()

    The handler's result is committed in one transaction with the ack of its message. A longer reply is
    written piece by piece:

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                await out.write_from(model(text_of(message)))

    Every message is handled at least once, and messages of one conversation one after the other, unless the
    agent's `concurrency` allows more. If the handler raises, the exception is logged, the conversation is
    notified that its answer is late, and the message is redelivered after a random delay below 1 s, 2 s, 4 s
    and so on up to a minute; RetryLater and Reject choose otherwise. When the attempts or the time of the
    agent's settings are used up, the message becomes a dead letter and the conversation gets a failed reply.
    If a streamed reply has failed, the message is not redelivered. Readers never get the text of an
    exception, except that of Failed, which is made for them.

    Handlers outlive the stream to the router, which the worker reconnects by itself. A handler whose message
    went to another worker is cancelled, or gets Fenced in its streamed reply; so handlers must tolerate
    being repeated.

    When readers cancel, the handler is interrupted where it waits. Inside a reply's block, the block raises
    ReplyCancelled; before the first reply the handler's task is cancelled; after a reply it goes on, and can
    open no other. The message is acknowledged, whatever the handler does then.

    A handler may be a plain function. It then costs no task, and blocks everything else while it runs. If
    the event loop is blocked for longer than the router's leases (15 s while a reply is streamed), the
    router takes the worker for dead: the reply expires and the message is redelivered.

    Args:
        router: The router's `host:port`. Several that share one database are separated by commas: the worker
            attaches to the one that owns the log, and follows when another one takes over.
        tenant: The tenant.
        agents: Names of the agents to serve.
        capacity: Messages to handle at a time.
        worker_id: Name of this worker in logs; host and process id if empty.
        credentials: TLS credentials; None leaves the stream unencrypted. See `load_credentials`.
        api_key: Sent with the stream; empty sends none.
        use_proxy: Connect through the proxy in grpc_proxy, https_proxy or http_proxy.
        on_attached: Called each time the router has accepted the worker.
        clock: Time and randomness, for tests.
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
        use_proxy: bool = False,
        on_attached: Callable[[AttachWelcome], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._routers = RouterChoice(router)
        self._hello = AttachHello(
            tenant=tenant,
            agents=agents,
            capacity=capacity,
            worker_id=worker_id or f"{socket.gethostname()[:100]}:{os.getpid()}",
            contract_minor=CONTRACT_MINOR,
        )
        self._credentials = credentials
        self._api_key = api_key
        self._use_proxy = use_proxy
        self._on_attached = on_attached
        self._clock = clock or Clock()
        self._retries = StreamRetries(self._routers, Backoff(self._clock.random, cap_s=2.0))
        self._handler: Handler | None = None
        self._table = DeliveryTable(self._clock)
        #: Whether the last attempt to attach succeeded; the next failure is then logged.
        self._attached = True
        #: Made by each run, because it belongs to an event loop.
        self._drained: asyncio.Event | None = None

    def __repr__(self) -> str:
        return f"<Worker {self._hello.worker_id} of {self._hello.tenant} at {self._routers}>"

    def handler(self, handler: H) -> H:
        """Sets the worker's handler; a decorator.

        Args:
            handler: A function from a message to its replies; see `Handler`.

        Returns:
            The function itself.

        Raises:
            Nothing.
        """
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
        """Makes a streamed reply to a message that a handler of this worker is handling.

        The first reply to a message continues the first one of an earlier attempt, the second the second.

        Args:
            message: The message that the handler received.
            name: The agent's name for readers.
            attributes: Strings of the application's own.
            on_cancel: Called when readers cancel, instead of interrupting the block.

        Returns:
            A `StreamedReply` to enter.

        Raises:
            ReplyCancelled: Readers cancelled the reply already.
            Fenced: This worker does not hold the delivery of the message, or no longer does.
            RuntimeError: The worker is not running.
        """
        self._require_running()
        request = OpenReply(name=name, attributes=dict(attributes or {}))
        return StreamedReply(self._table.reply(message, request, on_cancel))

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
        """Makes a streamed message to a topic of one of the worker's agents, without a delivery.

        Args:
            address: The topic.
            key: Opening again with the same key within a day resumes the same message. Empty makes a new one.
            reply_to: Id of the message that this one answers.
            name: The agent's name for readers.
            attributes: Strings of the application's own.
            on_cancel: Called when readers cancel, instead of interrupting the block.

        Returns:
            A `StreamedReply` to enter.

        Raises:
            RuntimeError: The worker is not running.
        """
        self._require_running()
        request = OpenReply(
            key=key or uuid.uuid4().hex,
            address=address,
            reply_to=reply_to,
            name=name,
            attributes=dict(attributes or {}),
        )
        return StreamedReply(self._table.open_message(request, on_cancel))

    async def run(self, handler: Handler | None = None) -> None:
        """Serves until cancelled or drained, and attaches again whenever the stream breaks.

        A router that cannot be reached is tried again for ever; each outage is logged once. On cancel the
        handlers are cancelled too, and nothing is left running.

        Args:
            handler: The handler, unless `handler` has set it.

        Raises:
            Refused: The router rejected the worker for good, for instance UNKNOWN_TENANT.
            Unreachable: The stream ended with a status that attaching again does not change. The status
                came from something in front of the router, and names no `trunkline.v1.ErrorCode`.
            RuntimeError: There is no handler, or the worker is running already.
        """
        await self._run_over(
            partial(
                open_channel,
                credentials=self._credentials,
                api_key=self._api_key,
                use_proxy=self._use_proxy,
            ),
            handler,
        )

    async def _run_over(
        self, open_channel: Callable[[str], grpc.aio.Channel], handler: Handler | None
    ) -> None:
        """Serves over channels of its own, as `run` does; for `trunkline_client.testing`."""
        handler = handler or self._handler
        if handler is None:
            raise RuntimeError("A worker needs a handler: write `@worker.handler` or `worker.run(handler)`")
        if self._table.is_open:
            raise RuntimeError("The worker is running already: make one Worker for each `run`")
        self._table.open(handler)
        self._drained = asyncio.Event()
        channel = FollowingChannel(self._routers, open_channel)
        stub = AgentServiceStub(cast("grpc.aio.Channel", channel))
        watch = TakeoverWatch(self._routers, channel, self._clock)
        serving = asyncio.create_task(self._serve(stub, watch), name=f"serve {self!r}")
        draining = asyncio.create_task(self._drained.wait())
        try:
            await asyncio.wait({serving, draining}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
        finally:
            serving.cancel()
            draining.cancel()
            await asyncio.wait({serving, draining})
            await self._table.close()
            await channel.close()

    async def drain(self, timeout_s: float = 30.0) -> bool:
        """Takes no more messages, waits until those being handled are settled, and lets `run` return.

        Args:
            timeout_s: Seconds to wait.

        Returns:
            True if everything is settled. False if that took longer than `timeout_s`, or the stream to the
            router broke meanwhile: the remaining handlers are cancelled, and their messages redelivered.

        Raises:
            RuntimeError: The worker is not running.
        """
        self._require_running()
        drained = self._drained
        assert drained is not None
        self._table.drain()
        idle = asyncio.ensure_future(self._table.wait_until_idle())
        timeout = asyncio.ensure_future(self._clock.sleep(timeout_s))
        try:
            await asyncio.wait({idle, timeout}, return_when=asyncio.FIRST_COMPLETED)
            return idle.done() and self._table.is_idle
        finally:
            drained.set()
            idle.cancel()
            timeout.cancel()

    def _require_running(self) -> None:
        if not self._table.is_open:
            raise RuntimeError("The worker is not running: `await worker.run()` in a task first")

    async def _serve(self, stub: AgentServiceStub, watch: TakeoverWatch) -> None:
        while True:
            router = self._routers.current
            error = await self._attach(stub, watch, router)
            if self._table.draining:
                return
            wait_s = self._retries.wait_s(router, error)
            if wait_s is None:
                raise error
            if self._attached and not (is_refusal_of_standby(error) and self._retries.goes_on):
                self._attached = False
                proxy = describe_proxy(self._use_proxy) if isinstance(error, Unreachable) else ""
                log.warning("not attached to %s, trying again: %s%s", router, error, proxy)
            await self._clock.sleep(wait_s)

    async def _attach(
        self, stub: AgentServiceStub, watch: TakeoverWatch, router: str
    ) -> Refused | TransportError:
        """Serves one stream to the current router until it breaks; returns the reason."""
        output = WorkerStream(self._hello, self._clock)
        stream: BidiStream[AttachRequest, AttachResponse] = BidiStream(
            stub.Attach(), output.write, partial(watch.wait_until_moved, router)
        )
        try:
            async for response in stream:
                if response.HasField("welcome"):
                    self._on_welcome(response.welcome, router)
                    self._table.attach(output, response.welcome)
                output.receive(response)
                self._table.receive(response)
        except grpc.aio.AioRpcError as error:
            return error_from_rpc(error, router, may_have_effect=False)
        finally:
            self._table.detach()
            try:
                await stream.close()
            finally:
                await output.close()
        return Unreachable(router, MOVED if stream.was_left else "the router ended the stream")

    def _on_welcome(self, welcome: AttachWelcome, router: str) -> None:
        self._attached = True
        self._retries.succeeded()
        log.info("attached to router %s at %s", welcome.router_id, router)
        if self._on_attached is not None:
            self._on_attached(welcome)
