"""Client of maim_message's API server on a bare socket, workers that answer it, and its logged envelopes."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from trunkline.v1.message_pb2 import ROLE_USER
from trunkline_client import Message, Worker, text_of
from websockets.asyncio.client import ClientConnection, connect

from tests.support.patience import patient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Self

    from tests.e2e.fleet import Fleet
    from tests.e2e.grpc_backend import GrpcBackend
    from tests.support.processes import Process

TIMEOUT_S = patient(15)

Envelope = dict[str, Any]


class ApiClient:
    """WebSocket client that acknowledges pushed frames; `inbox` holds frames that no test has read yet."""

    def __init__(self, edge: Process, api_key: str = "", platform: str = "", **headers: str) -> None:
        """Send key and platform in headers, like the stock client."""
        named = {"x-apikey": api_key, "x-platform": platform}
        self._headers = {name: value for name, value in named.items() if value}
        self._headers |= {name.replace("_", "-"): value for name, value in headers.items()}
        self._url = f"ws://{edge.address}/ws"
        self.inbox: list[Envelope] = []
        self.ws: ClientConnection

    def by_query(self, query: str, path: str = "/ws") -> Self:
        """Set the query of the URL."""
        self._url = f"{self._url.removesuffix('/ws')}{path}?{query}"
        return self

    async def __aenter__(self) -> Self:
        self.ws = await connect(self._url, additional_headers=self._headers, open_timeout=TIMEOUT_S)
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.ws.close()

    async def send(self, envelope: Envelope) -> None:
        """Send an envelope."""
        await self.ws.send(json.dumps(envelope))

    async def receive(self) -> Envelope:
        """Receive the next frame."""
        async with asyncio.timeout(TIMEOUT_S):
            frame: Envelope = json.loads(await self.ws.recv())
        if frame["type"] != "sys_ack":
            meta = {"uuid": "x", "acked_msg_id": frame["msg_id"], "timestamp": 1.0}
            await self.send({"ver": 1, "msg_id": "a", "type": "sys_ack", "meta": meta, "payload": {}})
        return frame

    async def next(self, kind: str = "sys_std") -> Envelope:
        """Receive the next frame of this type; others stay in the inbox."""
        for index, frame in enumerate(self.inbox):
            if frame["type"] == kind:
                return self.inbox.pop(index)
        while (frame := await self.receive())["type"] != kind:
            self.inbox.append(frame)
        return frame

    async def say(self, msg_id: Any, text: str = "hello", **fields: Any) -> Envelope:
        """Send a text; return its acknowledgement, which must be the next one received."""
        await self.send(envelope(msg_id, text) | fields)
        ack = await self.next("sys_ack")
        assert ack["meta"]["acked_msg_id"] == msg_id
        return ack

    async def texts_so_far(self, msg_id: str) -> list[str]:
        """Return the texts of all unread frames, after a round trip to the router.

        `msg_id` must have been sent before, so that sending it again yields only an acknowledgement.
        """
        await self.say(msg_id)
        frames, self.inbox = self.inbox, []
        return [text_of_envelope(frame) for frame in frames]


def envelope(msg_id: Any, text: str = "hello") -> Envelope:
    """Return an envelope like the stock client's."""
    return {
        "ver": 1,
        "msg_id": msg_id,
        "type": "sys_std",
        "meta": {"sender_user": "x", "platform": "qq", "timestamp": 1763370000.5},
        "payload": {
            "message_info": {"platform": "qq", "message_id": "m", "time": 1763370000.5},
            "message_segment": {"type": "text", "data": text},
            "message_dim": {"api_key": "x", "platform": "qq"},
        },
    }


def text_of_envelope(frame: Envelope) -> str:
    """Return the text of a `sys_std` with one text segment."""
    text: str = frame["payload"]["message_segment"]["data"]
    return text


@asynccontextmanager
async def worker(fleet: Fleet, tenant: str, *agents: str) -> AsyncIterator[list[Message]]:
    """Run agents that reply with their name and the message; yield the messages they received."""
    received: list[Message] = []

    def answer(message: Message) -> str:
        received.append(message)
        return f"{tenant}:{message.address.agent} heard {text_of(message)}"

    running = asyncio.create_task(Worker(fleet.router.address, tenant=tenant, agents=agents).run(answer))
    try:
        yield received
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def user_envelopes(backend: GrpcBackend, place: str) -> list[Any]:
    """Return the users' envelopes in the log of a place."""
    messages = backend.messages(f"{place}/group:{place.rpartition('/')[2]}")
    return [json.loads(each.parts[-1].custom.json) for each in messages if each.author.role == ROLE_USER]
