"""A process that serves agents: it receives what users say and answers."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import TypeVar

import grpc
import grpc.aio
from trunkline.v1.agent_service_pb2 import AttachHello, AttachRequest, AttachResponse, AttachWelcome
from trunkline.v1.agent_service_pb2_grpc import AgentServiceStub
from trunkline.v1.catalogue import CONTRACT_MINOR

from trunkline_client.attachment import Attachment
from trunkline_client.backoff import Backoff, Timing
from trunkline_client.channel import open_channel, refused_by_rpc
from trunkline_client.errors import Refused
from trunkline_client.replies import Handler
from trunkline_client.streams import TwoWays

H = TypeVar("H", bound=Handler)

log = logging.getLogger("trunkline_client")


class Worker:
    """Serves agents of one tenant, at most `capacity` messages at a time.

        worker = Worker("127.0.0.1:50051", tenant="demo", agents=["echo"])

        @worker.handler
        async def answer(message: Message) -> str:
            return f"You said: {text_of(message)}"

        await worker.run()

    What the handler returns is committed together with the message's being done. Every message is
    handled at least once, and messages of one conversation one after the other: when the handler
    raises, its process dies or the stream to the router breaks, the message is delivered again, so a
    handler must bear a repeat. While a handler waits, its delivery is kept; a handler that is cancelled
    lost its stream, and what it would return could not be used.

    A handler may be a plain function. Then it costs no task, and blocks everything else while it runs.
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
        on_attached: Callable[[AttachWelcome], None] | None = None,
        timing: Timing | None = None,
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
        self._on_attached = on_attached
        self._timing = timing or Timing()
        self._backoff = Backoff(self._timing.random, cap_s=2.0)
        self._handler: Handler | None = None
        self._attached = True

    def __repr__(self) -> str:
        return f"<Worker {self._hello.worker_id} of {self._hello.tenant} at {self._router}>"

    def handler(self, handler: H) -> H:
        """Makes a function the worker's handler; a decorator."""
        self._handler = handler
        return handler

    async def run(self, handler: Handler | None = None) -> None:
        """Serves until cancelled, attaching again whenever the stream breaks.

        Raises Refused where the router refuses the worker for a reason that will not go away, such as
        UNKNOWN_TENANT. On cancel the handlers are cancelled too, and nothing is left running.
        """
        handler = handler or self._handler
        if handler is None:
            raise RuntimeError("a worker needs a handler: `@worker.handler` or `worker.run(handler)`")
        channel = open_channel(self._router, self._credentials)
        try:
            while True:
                refusal = await self._attach(AgentServiceStub(channel), handler)
                if not refusal.retryable:
                    raise refusal
                wait_s = self._backoff.next_s(refusal.retry_after_ms / 1000)
                if self._attached:
                    self._attached = False
                    log.warning("not attached to %s, trying again: %s", self._router, refusal)
                await self._timing.sleep(wait_s)
        finally:
            await channel.close()

    async def _attach(self, stub: AgentServiceStub, handler: Handler) -> Refused:
        """Serves one stream until it breaks; returns why."""
        attachment = Attachment(self._hello, handler, self._timing)
        stream: TwoWays[AttachRequest, AttachResponse] = TwoWays(stub.Attach(), attachment.write)
        try:
            async for response in stream:
                if response.HasField("welcome"):
                    self._welcomed(response.welcome)
                    attachment.keep_alive(response.welcome.lease_s)
                attachment.take(response)
        except grpc.aio.AioRpcError as error:
            return refused_by_rpc(error)
        finally:
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
