"""A router in this process that gives the answers a test chooses."""

from __future__ import annotations

import asyncio
import inspect
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyProto
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from trunkline.v1.agent_service_pb2 import (
    AttachResponse,
    AttachWelcome,
    Delivery,
    ReplyEnded,
    ReplyOpened,
    SettlementResult,
)
from trunkline.v1.agent_service_pb2_grpc import AgentServiceServicer, add_AgentServiceServicer_to_server
from trunkline.v1.broadcast_service_pb2_grpc import (
    BroadcastServiceServicer,
    add_BroadcastServiceServicer_to_server,
)
from trunkline.v1.catalogue import CONTRACT_MINOR, Entry
from trunkline.v1.history_service_pb2_grpc import HistoryServiceServicer, add_HistoryServiceServicer_to_server
from trunkline.v1.message_pb2 import MESSAGE_STATE_OPEN, ROLE_USER, Author, Message, Part, TextPart
from trunkline.v1.presence_service_pb2_grpc import (
    PresenceServiceServicer,
    add_PresenceServiceServicer_to_server,
)

Context = grpc.aio.ServicerContext[Any, Any]


class StreamSide:
    """The router's end of one stream."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.over: asyncio.Future[Entry | grpc.StatusCode | None] = asyncio.get_running_loop().create_future()
        self._unread: defaultdict[str, list[Any]] = defaultdict(list)

    async def read(self) -> Any:
        """Reads the caller's next message."""
        return await self._context.read()

    async def write(self, message: Any) -> None:
        """Sends a message."""
        await self._context.write(message)

    def end(self, reason: Entry | grpc.StatusCode | None = None) -> None:
        """Ends the stream, with OK, a rejection or a bare status."""
        if not self.over.done():
            self.over.set_result(reason)

    # For workers.

    async def welcome(self, lease_s: int = 30, reply_lease_s: int = 0) -> Any:
        """Reads the worker's hello and answers it."""
        hello = (await self.read()).hello
        welcome = AttachWelcome(
            router_id="r1", contract_minor=CONTRACT_MINOR, lease_s=lease_s, reply_lease_s=reply_lease_s
        )
        await self.write(AttachResponse(welcome=welcome))
        return hello

    async def deliver(self, *numbers: int, attempt: int = 1) -> None:
        """Delivers messages whose texts are their delivery ids."""
        deliveries = [
            Delivery(
                delivery_id=number,
                attempt=attempt,
                message=Message(
                    id=f"m{number}",
                    author=Author(role=ROLE_USER, user="alice"),
                    parts=[Part(text=TextPart(text=str(number)))],
                ),
            )
            for number in numbers
        ]
        await self.write(AttachResponse(deliveries=deliveries))

    async def read_until(self, kind: str) -> list[Any]:
        """Reads batches until one has items of a kind, such as `opens`; keeps items of other kinds."""
        while not self._unread[kind]:
            batch = await self.read()
            for field, value in batch.ListFields():
                if field.is_repeated:
                    self._unread[field.name].extend(value)
        found = self._unread[kind]
        self._unread[kind] = []
        return found

    async def open_reply(
        self, text: str = "", *, next_index: int = 0, state: Any = MESSAGE_STATE_OPEN
    ) -> Any:
        """Reads the next opening of a reply and answers it with the message as it is."""
        (opening,) = await self.read_until("opens")
        await self.send_opened(opening.reply, text, next_index=next_index, state=state)
        return opening

    async def send_opened(
        self, reply: int, text: str = "", *, next_index: int = 0, state: Any = MESSAGE_STATE_OPEN
    ) -> None:
        """Reports that a reply is open."""
        message = Message(id="r1", state=state, next_index=next_index)
        if text:
            message.parts.add().text.text = text
        await self.write(AttachResponse(opened=[ReplyOpened(reply=reply, message=message)]))

    async def read_text(self, text: str) -> list[Any]:
        """Reads deltas until their text is complete; returns them."""
        found: list[Any] = []
        while "".join(each.text for each in found) != text:
            found += [delta for each in await self.read_until("deltas") for delta in each.deltas]
        return found

    async def end_reply(self, state: Any = None) -> Any:
        """Reads the next end of a reply, and confirms it, or reports another state."""
        (end,) = await self.read_until("ends")
        await self.send_ended(end.reply, state or end.state)
        return end

    async def send_ended(self, reply: int, state: Any) -> None:
        """Reports that a reply has ended."""
        await self.write(AttachResponse(ended=[ReplyEnded(reply=reply, state=state)]))

    async def confirm(self, *numbers: int) -> None:
        """Confirms settlements."""
        results = [SettlementResult(delivery_id=number) for number in numbers]
        await self.write(AttachResponse(results=results))


class ScriptedRouter(
    AgentServiceServicer, BroadcastServiceServicer, HistoryServiceServicer, PresenceServiceServicer
):
    """Hands streams to the test, and answers unary calls as the test has set."""

    def __init__(self) -> None:
        self.address = ""
        self._streams: asyncio.Queue[StreamSide] = asyncio.Queue()
        self._sides: list[StreamSide] = []
        #: By RPC, its answer to a request: a response, an awaitable of one, or a rejection: an Entry of the
        #: catalogue, or a bare status.
        self.answers: dict[str, Callable[[Any], Any]] = {}
        #: Requests of unary calls, in order.
        self.requests: list[Any] = []
        self.health = HealthServicer()

    async def report(self, serves: bool) -> None:
        """Reports by the health service whether the router owns the log."""
        status = HealthCheckResponse.SERVING if serves else HealthCheckResponse.NOT_SERVING
        await self.health.set("trunkline.v1.AgentService", status)

    async def stream(self) -> StreamSide:
        """Waits for the next stream."""
        return await self._streams.get()

    def end(self) -> None:
        """Ends all streams."""
        for side in self._sides:
            side.end()

    async def _hold(self, context: Context) -> None:
        side = StreamSide(context)
        self._sides.append(side)
        self._streams.put_nowait(side)
        reason = await side.over
        if isinstance(reason, Entry):
            await refuse(context, reason)
        elif reason is not None:
            await context.abort(reason, "out of order")

    async def Attach(self, request_iterator: Any, context: Context) -> None:  # type: ignore[override]  # noqa: N802
        await self._hold(context)

    async def BroadcastMany(self, request_iterator: Any, context: Context) -> None:  # type: ignore[override]  # noqa: N802
        await self._hold(context)

    async def WatchConnections(self, request: Any, context: Context) -> None:  # type: ignore[override]  # noqa: N802
        self.requests.append(request)
        await self._hold(context)


def _unary(name: str) -> Callable[[ScriptedRouter, Any, Context], Awaitable[Any]]:
    async def answer(self: ScriptedRouter, request: Any, context: Context) -> Any:
        self.requests.append(request)
        answered = self.answers[name](request)
        if inspect.isawaitable(answered):
            answered = await answered
        if isinstance(answered, Entry):
            await refuse(context, answered)
        if isinstance(answered, grpc.StatusCode):
            await context.abort(answered, "out of order")
        return answered

    return answer


for _name in (
    "Broadcast",
    "ListMessages",
    "GetMessage",
    "ResetConversation",
    "ListConnections",
    "CountConnections",
    "ListTopics",
    "GetStats",
    "CloseConnections",
    "OpenMessage",
    "ExtendMessage",
    "EndMessage",
    "CancelMessage",
    "EditMessage",
    "RecallMessage",
    "ListReceipts",
    "ListDeadLetters",
    "ReplayDeadLetters",
):
    setattr(ScriptedRouter, _name, _unary(_name))
ScriptedRouter.__abstractmethods__ = frozenset()


async def refuse(context: Context, entry: Entry, domain: str = "trunkline") -> None:
    """Rejects a call as a router does."""
    status = Status(code=entry.grpc_status, message=entry.text)
    details: list[Any] = [ErrorInfo(reason=entry.code, domain=domain)]
    if entry.retryable:
        delay = Duration()
        delay.FromMilliseconds(entry.retry_after_ms)
        details.append(RetryInfo(retry_delay=delay))
    for detail in details:
        packed = AnyProto()
        packed.Pack(detail)
        status.details.append(packed)
    code = next(each for each in grpc.StatusCode if each.value[0] == entry.grpc_status)
    await context.abort(code, entry.text, (("grpc-status-details-bin", status.SerializeToString()),))


@asynccontextmanager
async def scripted_router(listen: str = "127.0.0.1:0") -> AsyncIterator[ScriptedRouter]:
    """A listening router."""
    server = grpc.aio.server()
    router = ScriptedRouter()  # type: ignore[abstract]  # its RPCs are set above
    add_HealthServicer_to_server(router.health, server)
    add_AgentServiceServicer_to_server(router, server)
    add_BroadcastServiceServicer_to_server(router, server)
    add_HistoryServiceServicer_to_server(router, server)
    add_PresenceServiceServicer_to_server(router, server)
    router.address = f"127.0.0.1:{server.add_insecure_port(listen)}"
    await server.start()
    try:
        yield router
    finally:
        router.end()
        await server.stop(None)
