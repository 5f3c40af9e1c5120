"""Tenant with the same names as its twin: its keys, its connections, and everything it can see."""

from __future__ import annotations

import asyncio
import json
import queue
import time
import uuid
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
from trunkline.v1.media_service_pb2 import UploadMediaRequest
from trunkline.v1.media_service_pb2_grpc import MediaServiceStub
from trunkline.v1.presence_service_pb2 import (
    CountConnectionsRequest,
    GetStatsRequest,
    ListConnectionsRequest,
    ListTopicsRequest,
)
from trunkline.v1.tenant_pb2 import AgentSettings
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
#: Paths below a tenant to which messages may be sent.
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
#: Codecs of connections; each name begins with its dialect. Some dialects have several.
CODECS = (
    "native json",
    "native proto",
    "native events",
    "maim",
    "maim.api",
    "maim.api router",
    "maim.socket_io",
    "langbot",
    "langbot.embed",
)
#: Codec of which a tenant's newest connection closes the one before.
ROUTER = "maim.api router"


#: Time within which edges know a change of a tenant.
PROPAGATION_S = 1.0


class TwinTenant:
    """One of two tenants with equal ids, except ids that the router generates."""

    def __init__(self, name: str, operator: OperatorClient, edges: list[Process]) -> None:
        self.name = name
        self.operator = operator
        self.edges = edges
        self.words = f"words-of-{name}"
        self.secret = f"secret-of-{name}"
        self.pipeline = f"pipeline-of-{name}"
        self.bot = f"bot-of-{name}"
        self.session_id = str(uuid.uuid4())
        self.fences = 0
        self.connections: dict[str, RawConnection] = {}

    # Set up

    async def begin(self) -> None:
        """Create the tenant, connect in every codec, and create one resource of every kind."""
        self.signer = Signer(self.name)
        self.operator.create(
            self.name,
            client_auth=client_auth([self.signer], [self.secret]),
            pipelines=[self.pipeline],
            web_page_bots=[self.bot],
            default_agent=AGENT,
            agents={AGENT: AgentSettings()},
        )
        made = self.operator.api_key(self.name)
        self.key, self.key_id = made.secret, made.api_key.key_id
        self._watch = self.operator.api_key(self.name)
        self.new_spare()
        self.backend = GrpcBackend(self.operator.address, key=self.key)
        watching = GrpcBackend(self.operator.address, key=self._watch.secret)
        self._watching = (watching, AgentServiceStub(watching.channel), TenantServiceStub(watching.channel))
        self.dead_letter = 0
        self.upload_key = self._upload()
        await self.connect()
        await self.create_messages()
        self.dead_letter = self._dead_letter_a_delivery()
        await wait_until(self._is_without_worker, "the router knows that the worker is detached")

    async def end(self) -> None:
        """Disconnect and delete the tenant."""
        await self.disconnect()
        self.operator.delete(self.name)
        self.backend.channel.close()
        self._watching[0].channel.close()

    def new_spare(self) -> None:
        """Create an API key that tests may revoke."""
        self.spare_id = self.operator.api_key(self.name, "HISTORY").api_key.key_id

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """Call metadata of the tenant's backends."""
        return [("authorization", f"Bearer {self.key}")]

    async def create_messages(self) -> None:
        """Create a message of the user, and an open message."""
        connection = self.connections["native json"]
        self.fences += 1
        client_id = f"m{self.fences}"
        parts = [{"type": "text", "text": f"{self.words} {client_id}"}]
        await connection.send(json.dumps({"type": "message", "id": client_id, "parts": parts}))
        await connection.wait_for(f'"id":"{client_id}"')
        ack = next(f for f in connection.frames if f'"id":"{client_id}"'.encode() in f)
        response = json.loads(ack)
        assert response["type"] == "ack", response
        self.client_id, self.message_id = client_id, response["message_id"]
        self.position = Position(epoch=response["position"]["epoch"], seq=response["position"]["seq"])
        to = address(f"{self.name}/echo/web/group:room")
        self.asked_key = f"a{self.fences}"
        asked = BroadcastRequest(address=to, idempotency_key=self.asked_key)
        asked.parts.add().text.text = f"{self.words} asked"
        self.backend.broadcast_stub.Broadcast(asked, timeout=TIMEOUT_S)
        self.open_key = f"o{self.fences}"
        request = OpenMessageRequest(address=to, key=self.open_key)
        opened = self.backend.broadcast_stub.OpenMessage(request, timeout=TIMEOUT_S)
        self.open_id, self.open_epoch = opened.message.id, opened.epoch

    def _upload(self) -> str:
        """Upload an image; return its key."""
        request = UploadMediaRequest(tenant=self.name, content=self.words.encode(), mime_type="image/png")
        stub = MediaServiceStub(self.backend.channel)
        return str(stub.UploadMedia(request, metadata=self.metadata, timeout=TIMEOUT_S).key)

    def _dead_letter_a_delivery(self) -> int:
        """Attach a worker that rejects the first delivery; return its id."""
        hello = AttachHello(tenant=self.name, agents=[AGENT], capacity=1, contract_minor=CONTRACT_MINOR)
        outgoing: queue.SimpleQueue[AttachRequest | None] = queue.SimpleQueue()
        outgoing.put(AttachRequest(hello=hello))
        stub = AgentServiceStub(self.backend.channel)
        call = stub.Attach(iter(outgoing.get, None), metadata=self.metadata, timeout=TIMEOUT_S)
        for response in call:
            if response.results:
                # A second delivery may have arrived; leave it to other workers.
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

    # Connections

    def path(self, codec: str, tenant: str = "", pipeline: str = AGENT) -> tuple[str, dict[str, Any]]:
        """Return path and options for connecting with its own credentials, by default to its own tenant."""
        tenant = tenant or self.name
        native = f"tenant={tenant}&agent=echo&platform=web&conversation=group:room"
        match codec:
            case "native json" | "native proto":
                subprotocol = f"trunkline.v1.{codec.split()[1]}"
                token = self.signer.token(USER)
                return f"/v1/connect?{native}&token={token}", {"subprotocols": [subprotocol]}
            case "native events":
                return f"/v1/events?{native}&token={self.signer.token(USER)}", {}
            case "maim":
                return f"/ws/{tenant}/echo/web?token={self.secret}", {}
            case "maim.api":
                key = f"{tenant}:echo:{self.secret}"
                return "/ws", {"additional_headers": {"x-apikey": key, "x-platform": "web"}}
            case "maim.api router":
                key = f"{tenant}:echo:{self.secret}"
                return "/ws", {"additional_headers": {"authorization": key, "platform": "web"}}
            case "maim.socket_io":
                key = quote(f"{tenant}:echo:{self.secret}")
                return f"/ws/?EIO=4&transport=websocket&api_key={key}&platform=web", {}
            case "langbot.embed":
                return f"/api/v1/embed/{self.bot}/ws/connect?session_id={self.session_id}", {}
        path = f"/api/v1/pipelines/{quote(pipeline)}/ws/connect?session_type=group&token={self.secret}"
        return path, {}

    def connection(self, codec: str, **elsewhere: str) -> RawConnection:
        """Create an unopened connection."""
        path, options = self.path(codec, **elsewhere)
        edge = self.edges[CODECS.index(codec) % len(self.edges)]
        if codec == "native events":
            return RawEventStream(codec, edge, path)
        return RawConnection(codec, edge, path, **options)

    async def connect(self) -> None:
        """Open a connection in each codec."""
        for codec in CODECS:
            connection = self.connections[codec] = await self.connection(codec).open()
            began = time.monotonic()
            while connection.is_closed and time.monotonic() - began < under_load(PROPAGATION_S):
                await asyncio.sleep(0.01)
                await connection.open()
            assert not connection.is_closed, (codec, connection.status, connection.frames)
        # Earlier connections may still receive presence events of later ones.
        await self.fence()

    async def disconnect(self) -> None:
        """Close all connections."""
        for connection in self.connections.values():
            await connection.close()

    def words_in(self, codec: str, ident: str) -> str:
        """Return a frame with a text message in a codec."""
        text = f"{self.words} {ident}"
        match codec:
            case "native json":
                frame: Any = {"type": "message", "id": ident, "parts": [{"type": "text", "text": text}]}
            case "maim":
                frame = {**chat(text), "message_id": ident}
            case "maim.api":
                frame = envelope(ident, text)
            case "maim.socket_io":
                return f"42{json.dumps(['message', envelope(ident, text)])}"
            case _:
                frame = {"type": "message", "message": [{"type": "Plain", "text": text}]}
        return json.dumps(frame)

    # Observe

    async def fence(self) -> None:
        """Wait until everything in transit has arrived, and forget it."""
        await self.assert_nothing_received(allowed=True)

    async def assert_nothing_received(self, allowed: bool = False) -> None:
        """Fail if a connection has received anything since the last fence, unless `allowed`."""
        self.fences += 1
        mark = f"fence-{self.fences}-of-{self.name}"
        request = BroadcastRequest(address=address(self.name), ephemeral=True)
        request.parts.add().text.text = mark
        counted = self.backend.broadcast_stub.Broadcast(request, timeout=TIMEOUT_S).connections
        assert allowed or counted == len(self.connections)
        for connection in self.connections.values():
            await connection.wait_for(mark)
            received = [frame for frame in connection.frames if mark.encode() not in frame]
            assert allowed or not received, f"{self.name}, {connection.name}: {received}"
            connection.frames.clear()

    def view(self) -> dict[str, str]:
        """Return the responses to all queries that the tenant can make, by query."""
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
            # The query itself uses this key.
            if key.key_id == self._watch.api_key.key_id:
                key.ClearField("last_used_at")
        return str(answer)
