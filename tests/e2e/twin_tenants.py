"""One of two tenants that have everything of the same name: its keys, its connections, all that it sees."""

from __future__ import annotations

import asyncio
import json
import queue
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import grpc
from trunkline.v1.address_pb2 import Position
from trunkline.v1.agent_service_pb2 import (
    AttachHello,
    AttachRequest,
    ListDeadLettersRequest,
    Reject,
    Settlement,
)
from trunkline.v1.agent_service_pb2_grpc import AgentServiceStub
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest, OpenMessageRequest
from trunkline.v1.catalogue import CONTRACT_MINOR
from trunkline.v1.history_service_pb2 import ListMessagesRequest, ListReceiptsRequest
from trunkline.v1.presence_service_pb2 import (
    CountConnectionsRequest,
    GetStatsRequest,
    ListConnectionsRequest,
    ListTopicsRequest,
)
from trunkline.v1.tenant_service_pb2 import GetTenantRequest, ListApiKeysRequest, ListRevocationsRequest
from trunkline.v1.tenant_service_pb2_grpc import TenantServiceStub

from tests.e2e.grpc_backend import TIMEOUT_S, GrpcBackend, address
from tests.e2e.maim_api_client import envelope
from tests.e2e.maim_client import chat
from tests.e2e.operator_client import OperatorClient, client_auth
from tests.e2e.polling import wait_until
from tests.e2e.raw_connections import RawConnection, RawEventStream
from tests.support.patience import under_load
from tests.support.signing import Signer

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from tests.support.processes import Process

AGENT, PLATFORM, ROOM, USER = "echo", "web", "room", "ann"
#: Where something may be said, below the tenant.
PATHS = (
    "",
    "/echo",
    "/echo/web",
    "/echo/web/group:room",
    "/echo/web/group:side",
    "/echo/web/person:ann",
    "/echo/web/group:web",
    "/user:ann",
)
#: Languages of WebSockets, with which the dialects' names begin; of the native one there are two.
CODECS = ("native json", "native proto", "native events", "maim", "maim.api", "langbot")


#: Edges know of a change of a tenant within a second.
PROPAGATION_S = 1.0


class TwinTenant:
    """One tenant. Its ids are the same as those of the other side, but for those that the router makes."""

    def __init__(self, name: str, operator: OperatorClient, edges: list[Process]) -> None:
        self.name = name
        self.operator = operator
        self.edges = edges
        self.words = f"words-of-{name}"
        self.secret = f"secret-of-{name}"
        self.pipeline = f"pipeline-of-{name}"
        self.fences = 0
        self.ears: dict[str, RawConnection] = {}

    # What it has

    async def begin(self) -> None:
        """Declare the tenant, connect in every dialect, and have one of everything."""
        self.signer = Signer(self.name)
        self.operator.create(
            self.name,
            client_auth=client_auth([self.signer], [self.secret]),
            pipelines=[self.pipeline],
            default_agent=AGENT,
        )
        made = self.operator.api_key(self.name)
        self.key, self.key_id = made.secret, made.api_key.key_id
        self._watch = self.operator.api_key(self.name)
        self.new_spare()
        self.backend = GrpcBackend(self.operator.address, key=self.key)
        watching = GrpcBackend(self.operator.address, key=self._watch.secret)
        self._watching = (watching, AgentServiceStub(watching.channel), TenantServiceStub(watching.channel))
        self.dead_letter = 0
        await self.connect()
        await self.say_more()
        self.dead_letter = self._give_up_a_delivery()
        await wait_until(self._is_without_worker, "the router learns that the worker has hung up")

    async def end(self) -> None:
        """Leave, and erase the tenant."""
        await self.disconnect()
        self.operator.delete(self.name)
        self.backend.channel.close()
        self._watching[0].channel.close()

    def new_spare(self) -> None:
        """A key that may be revoked."""
        self.spare_id = self.operator.api_key(self.name, "HISTORY").api_key.key_id

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """With which its backends call."""
        return [("authorization", f"Bearer {self.key}")]

    async def say_more(self) -> None:
        """Have a message of the user's, and one that is open."""
        mouth = self.ears["native json"]
        self.fences += 1
        client_id = f"m{self.fences}"
        parts = [{"type": "text", "text": f"{self.words} {client_id}"}]
        await mouth.send(json.dumps({"type": "message", "id": client_id, "parts": parts}))
        await mouth.heard(f'"id":"{client_id}"')
        ack = next(f for f in mouth.frames if f'"id":"{client_id}"'.encode() in f)
        told = json.loads(ack)
        assert told["type"] == "ack", told
        self.client_id, self.message_id = client_id, told["message_id"]
        self.position = Position(epoch=told["position"]["epoch"], seq=told["position"]["seq"])
        to = address(f"{self.name}/echo/web/group:room")
        self.open_key = f"o{self.fences}"
        request = OpenMessageRequest(address=to, key=self.open_key)
        opened = self.backend.broadcasting.OpenMessage(request, timeout=TIMEOUT_S)
        self.open_id, self.open_epoch = opened.message.id, opened.epoch

    def _give_up_a_delivery(self) -> int:
        """Attach a worker that rejects the first delivery; returns its id."""
        hello = AttachHello(tenant=self.name, agents=[AGENT], capacity=1, contract_minor=CONTRACT_MINOR)
        outgoing: queue.SimpleQueue[AttachRequest | None] = queue.SimpleQueue()
        outgoing.put(AttachRequest(hello=hello))
        stub = AgentServiceStub(self.backend.channel)
        call = stub.Attach(iter(outgoing.get, None), metadata=self.metadata, timeout=TIMEOUT_S)
        for response in call:
            if response.results:
                # The next delivery may have come along: it is left for others.
                outgoing.put(None)
                call.cancel()
                return int(response.results[0].delivery_id)
            for delivery in response.deliveries:
                settlement = Settlement(delivery_id=delivery.delivery_id, reject=Reject(reason=self.words))
                outgoing.put(AttachRequest(settlements=[settlement]))
        raise AssertionError("nothing was delivered")

    def _is_without_worker(self) -> bool:
        stats = self._watching[0].presence.GetStats(GetStatsRequest(tenant=self.name), timeout=TIMEOUT_S)
        [agent] = stats.agents
        assert agent.dead_letters == 1
        return not agent.workers

    # Its connections

    def path(self, language: str, tenant: str = "", pipeline: str = AGENT) -> tuple[str, dict[str, Any]]:
        """Where to connect to, and how, by its own credentials; to another tenant where one is named."""
        tenant = tenant or self.name
        native = f"tenant={tenant}&agent=echo&platform=web&conversation=group:room"
        match language:
            case "native json" | "native proto":
                codec = f"trunkline.v1.{language.split()[1]}"
                token = self.signer.token(USER)
                return f"/v1/connect?{native}&token={token}", {"subprotocols": [codec]}
            case "native events":
                return f"/v1/events?{native}&token={self.signer.token(USER)}", {}
            case "maim":
                return f"/ws/{tenant}/echo/web?token={self.secret}", {}
            case "maim.api":
                key = f"{tenant}:echo:{self.secret}"
                return "/ws", {"additional_headers": {"x-apikey": key, "x-platform": "web"}}
        path = f"/api/v1/pipelines/{quote(pipeline)}/ws/connect?session_type=group&token={self.secret}"
        return path, {}

    def ear(self, language: str, **elsewhere: str) -> RawConnection:
        """A connection that is yet to be opened."""
        path, options = self.path(language, **elsewhere)
        edge = self.edges[CODECS.index(language) % len(self.edges)]
        if language == "native events":
            return RawEventStream(language, edge, path)
        return RawConnection(language, edge, path, **options)

    async def connect(self) -> None:
        """Open a connection in each language."""
        for language in CODECS:
            ear = self.ears[language] = await self.ear(language).open()
            began = time.monotonic()
            while ear.is_closed and time.monotonic() - began < under_load(PROPAGATION_S):
                await asyncio.sleep(0.01)
                await ear.open()
            assert not ear.is_closed, (language, ear.status, ear.frames)
        # Whoever came first may still be told of those that came later.
        await self.fence()

    async def disconnect(self) -> None:
        """Close them all."""
        for ear in self.ears.values():
            await ear.close()

    def words_in(self, language: str, ident: str) -> str:
        """A frame that says something in a language of WebSockets that has text."""
        text = f"{self.words} {ident}"
        match language:
            case "native json":
                frame: Any = {"type": "message", "id": ident, "parts": [{"type": "text", "text": text}]}
            case "maim":
                frame = {**chat(text), "message_id": ident}
            case "maim.api":
                frame = envelope(ident, text)
            case _:
                frame = {"type": "message", "message": [{"type": "Plain", "text": text}]}
        return json.dumps(frame)

    # What it sees

    async def fence(self) -> None:
        """Wait until all that was on its way to any connection has come, and forget it."""
        await self.told_nothing(allowed=True)

    async def told_nothing(self, allowed: bool = False) -> None:
        """No connection has been told anything since the last fence, unless that is allowed."""
        self.fences += 1
        mark = f"fence-{self.fences}-of-{self.name}"
        request = BroadcastRequest(address=address(self.name), ephemeral=True)
        request.parts.add().text.text = mark
        counted = self.backend.broadcasting.Broadcast(request, timeout=TIMEOUT_S).connections
        assert allowed or counted == len(self.ears)
        for ear in self.ears.values():
            await ear.heard(mark)
            told = [frame for frame in ear.frames if mark.encode() not in frame]
            assert allowed or not told, f"{self.name}, {ear.name}: {told}"
            ear.frames.clear()

    def view(self) -> dict[str, str]:
        """All that it can ask for, by the question."""
        backend, workers, admin = self._watching
        name = self.name
        asked: list[tuple[Any, Message]] = [
            (backend.history_service.ListMessages, ListMessagesRequest(address=address(f"{name}{place}")))
            for place in PATHS
        ]
        asked += [
            (backend.history_service.ListReceipts, ListReceiptsRequest(address=address(f"{name}{place}")))
            for place in ("/echo/web/group:room", "/echo/web/group:web")
        ]
        asked += [
            (backend.presence.ListConnections, ListConnectionsRequest(address=address(name))),
            (backend.presence.CountConnections, CountConnectionsRequest(address=address(name))),
            (backend.presence.ListTopics, ListTopicsRequest(address=address(name))),
            (backend.presence.GetStats, GetStatsRequest(tenant=name)),
            (workers.ListDeadLetters, ListDeadLettersRequest(tenant=name, agent=AGENT)),
            (admin.ListApiKeys, ListApiKeysRequest(tenant=name)),
            (admin.ListRevocations, ListRevocationsRequest(tenant=name)),
            (admin.GetTenant, GetTenantRequest(tenant=name)),
        ]
        calls = [(request, rpc.future(request, timeout=TIMEOUT_S)) for rpc, request in asked]
        return {f"{type(request).__name__} {request}": self._seen(call) for request, call in calls}

    def _seen(self, call: grpc.Future) -> str:
        answer = call.result()
        for key in getattr(answer, "api_keys", ()):
            # Whoever looks uses a key.
            if key.key_id == self._watch.api_key.key_id:
                key.ClearField("last_used_at")
        return str(answer)
