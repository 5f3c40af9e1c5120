"""No message text and no secret gets into process logs or metrics, whatever fails."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import ssl
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
from trunkline.v1.address_pb2 import Address
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidHandshake

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import GrpcBackend
from tests.e2e.langbot_client import ChatClient, RestClient, pipeline_path
from tests.e2e.maim_api_client import ApiClient
from tests.e2e.maim_client import MaimClient, http
from tests.e2e.operator_client import OperatorClient, client_auth, wait_until_known
from tests.e2e.polling import wait_until
from tests.e2e.recording_client import RecordingClient
from tests.e2e.rejections import metrics_of, rejected_handshake, rejected_stream
from tests.support.jwks_server import running_jwks_server
from tests.support.patience import patient
from tests.support.signing import Signer
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.processes import Process


class Secrets:
    """Texts and secrets that must not appear anywhere, collected when they are created."""

    def __init__(self) -> None:
        self.made: dict[str, str] = {}

    def new(self, what: str) -> str:
        """Create and collect a unique text."""
        return self.keep(what, secrets.token_hex(12))

    def keep(self, what: str, secret: str) -> str:
        """Collect a secret that was created elsewhere."""
        assert len(secret) > 12
        self.made[f"{len(self.made)}: {what}"] = secret
        return secret

    def token(self, token: str) -> str:
        """Collect a token and its parts."""
        for number, part in enumerate(token.split(".")):
            # The first part is the header, which is not secret.
            if number and len(part) > 12:
                self.keep("part of a token", part)
        return self.keep("token", token)

    def seen_in(self, text: str) -> list[str]:
        """Return the collected items that occur in a text, with their lines."""
        seen = ((what, secret) for what, secret in self.made.items() if secret in text)
        return [f"{what}: {next(line for line in text.splitlines() if s in line)}" for what, s in seen]


SECRETS = Secrets()
LINK_KEY = SECRETS.new("link key") * 2
TENANT = "private"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    env = {"TRUNKLINE_LINK_KEY": LINK_KEY, "TRUNKLINE_OPERATOR_KEY": SECRETS.new("operator's key") * 2}
    with fleet_of(tmp_path_factory.mktemp("privacy"), edges=0, **env) as started:
        started.start_edge(TRUNKLINE_LINK_KEY=LINK_KEY, TRUNKLINE_HANDSHAKE_TIMEOUT_S="1")
        started.start_worker("reply")
        yield started


@pytest.fixture
def operator(fleet: Fleet) -> Iterator[OperatorClient]:
    with OperatorClient(fleet.router.address, fleet._env["TRUNKLINE_OPERATOR_KEY"]) as calling:
        yield calling


@pytest.fixture(autouse=True)
def nothing_is_seen(fleet: Fleet, edge: Process) -> Iterator[None]:
    """Check the output and metrics of all processes after each test."""
    yield
    seen = {f"stderr of {each.name}": SECRETS.seen_in(each.stderr) for each in fleet.processes}
    seen |= {"metrics": SECRETS.seen_in(metrics_of(edge))}
    seen |= {"health": SECRETS.seen_in(httpx.get(f"http://{edge.address}/healthz", trust_env=False).text)}
    assert not {where: what for where, what in seen.items() if what}


def words() -> str:
    return SECRETS.new("message text")


def signer(operator: OperatorClient, edge: Process, tenant: str = TENANT) -> tuple[Signer, str]:
    """Create a tenant that accepts tokens, and a shared secret of its clients."""
    made, secret = Signer(tenant, algorithm="HS256"), SECRETS.new("clients' secret")
    SECRETS.keep("key of a signer", made.key.as_dict()["k"])
    operator.create(tenant, client_auth=client_auth([made], [secret]), default_agent="echo")
    wait_until_known(tenant, edge)
    return made, secret


async def test_message_texts_of_no_dialect_are_logged(
    fleet: Fleet, edge: Process, operator: OperatorClient
) -> None:
    made, secret = signer(operator, edge)
    token = SECRETS.token(made.token("ann"))
    headers = {"Authorization": f"Bearer {token}"}
    async with RecordingClient(History(), f"{TENANT}/ann", edge.address, additional_headers=headers) as ann:
        ack = await ann.next("ack", id=await ann.say(words()))
        await ann.send({"type": "signal", "name": "typing", "data": {"words": words()}})
        parts = [{"type": "text", "text": words()}]
        await ann.send({"type": "edit", "id": "e", "message_id": ack["message_id"], "parts": parts})
        await ann.next("ack", id="e")
        await ann.send({"type": "edit", "id": "e2", "message_id": words(), "parts": parts})
        await ann.next("error", id="e2")
        await ann.send({"type": "auth", "id": "a", "token": SECRETS.token(made.token("ann"))})
        await ann.next("authorized", id="a")
        await ann.send({"type": "auth", "id": "a", "token": SECRETS.token(made.token("bob"))})
        await ann.next("error", id="a")
    async with RecordingClient(History(), "demo/ann", edge.address, "person:ann") as asks:
        text = words()
        await asks.next("ack", id=await asks.say(text))
        assert (await asks.next("message"))["parts"][0]["text"] == f"re: {text}"
    async with MaimClient(edge, f"{TENANT}/echo/qq", f"?token={secret}") as adapter:
        await adapter.say("m1", words())
    async with ApiClient(edge, f"{TENANT}:echo:{secret}", "qq") as client:
        await client.say("m1", words())
    async with ChatClient(edge, "echo", query=f"token={secret}") as chat:
        text = words()
        await chat.say(text)
        await chat.wait_for_record(text)
    assert len(await RestClient(edge, "echo", {"Authorization": f"Bearer {secret}"}).messages()) == 1


async def test_api_keys_and_calls_are_not_logged(
    fleet: Fleet, edge: Process, operator: OperatorClient
) -> None:
    signer(operator, edge, "keyed")
    key = SECRETS.keep("API key", operator.api_key("keyed").secret)
    SECRETS.keep("secret part of an API key", key.rpartition("_")[2])
    weak = SECRETS.keep("weak API key", operator.api_key("keyed", "PRESENCE").secret)
    with GrpcBackend(fleet.router.address, key=key) as backend:
        backend.broadcast("keyed/echo/web/group:team", words(), words())
    for metadata in (key, weak, words(), f"tl_{words()}_{words()}"):
        with GrpcBackend(fleet.router.address, key=metadata) as backend:
            for call in (lambda b=backend: b.broadcast("demo", words()), lambda b=backend: b.reset("keyed")):
                try:
                    call()
                except grpc.RpcError:
                    continue
        for headers in ({"authorization": f"Bearer {metadata}"}, {"x-api-key": metadata}):
            async with httpx.AsyncClient(base_url=f"http://{edge.address}", trust_env=False) as client:
                body = {"address": {"agent": "echo"}, "parts": [{"text": {"text": words()}}]}
                for path in ("/v1/tenants/keyed/messages", "/v1/tenants/demo/messages", "/v1/nothing"):
                    await client.post(f"{path}?token={words()}", json=body, headers=headers)
                await client.post("/v1/tenants/keyed/messages", content=words(), headers=headers)
                await client.get(f"/v1/tenants/keyed/messages/{words()}", headers=headers)
    unheard = [(name, words()) for name in ("trunkline-link-key", "trunkline-acting-for")]
    with grpc.insecure_channel(fleet.router.address) as channel:
        call = channel.unary_unary(
            "/trunkline.v1.BroadcastService/Broadcast", BroadcastRequest.SerializeToString
        )
        with pytest.raises(grpc.RpcError):
            call(BroadcastRequest(address=Address(tenant="keyed")), metadata=unheard, timeout=patient(10))


async def test_invalid_tokens_are_not_logged(edge: Process, operator: OperatorClient) -> None:
    made, _ = signer(operator, edge, "strict")
    tokens = [
        made.token("ann", -5),
        made.token("ann", tenant="another"),
        made.token(words() + "/"),
        made.token("ann", trunkline={words(): []}),
        made.token("ann", jti=words() * 30),
        made.token("ann", exp=words()),
        Signer("strict", "unknown").token("ann"),
        words(),
        f"{words()}.{words()}.{words()}",
        base64.b64encode(words().encode()).decode(),
    ]
    path = "/v1/{}?tenant=strict&agent=echo&platform=web&conversation=group:x"
    for token in tokens:
        SECRETS.token(token)
        lines = edge.stderr.count("a client was refused")
        # Logging of repeated rejections is rate-limited.
        while edge.stderr.count("a client was refused") == lines:
            await rejected_handshake(edge, f"{path.format('connect')}&token={token}")
    for token in tokens:
        await rejected_handshake(
            edge, path.format("connect"), additional_headers={"Authorization": f"Bearer {token}"}
        )
        await rejected_handshake(edge, path.format("connect"), subprotocols=[f"bearer.{token}".rstrip("=")])
        await rejected_stream(edge, f"{path.format('events')}&token={token}")
        async with connect(f"ws://{edge.address}{path.format('connect')}&auth=frame") as ws:
            await ws.send(json.dumps({"type": "auth", "id": "a", "token": token}))
            assert json.loads(await ws.recv())["type"] == "closing"
        for other in (f"/ws/strict/echo/qq?token={token}", pipeline_path("p", f"connect?token={token}")):
            await _tried(edge, other)
        await _tried(edge, "/ws", {"x-apikey": f"strict:echo:{token}"})
        await http(edge, "GET", "/api/v1/tenants/strict/connections", authorization=f"Bearer {token}")


async def _tried(edge: Process, path: str, headers: dict[str, str] | None = None) -> None:
    try:
        async with connect(f"ws://{edge.address}{path}", additional_headers=headers) as ws:
            await ws.send(json.dumps({"type": "authenticate", "token": words()}))
            async with asyncio.timeout(patient(10)):
                await ws.wait_closed()
    except InvalidHandshake:
        return


async def test_invalid_frames_and_bytes_are_not_logged(fleet: Fleet, edge: Process) -> None:
    bad: list[Any] = [
        f'{{"type":"{words()}"}}',
        f'{{"type":"message","id":"{words()}","parts":[{{"type":"{words()}"}}]}}',
        f'{{"{words()}',
        words(),
        words().encode(),
        json.dumps({"type": "subscribe", "id": "s", "conversation": {"kind": words(), "id": "x"}}),
        json.dumps({"type": "message", "id": "m", "parts": [{"type": "text", "text": words() * 20000}]}),
        json.dumps({"type": "auth", "id": "a", "token": words()}),
    ]
    async with RecordingClient(History(), "demo/ann", edge.address) as ann:
        for number, frame in enumerate(bad, 1):
            await ann.send(frame)
            await wait_until(
                lambda number=number: len([f for f in ann.inbox if f["type"] == "error"]) >= number,
                f"{frame[:40]} is refused",
            )
        await ann.send(json.dumps({"type": "message", "id": words(), "parts": [{"text": words() * 90_000}]}))
        await wait_until(lambda: ann.closed, "that is too large")
    requests = [
        words().encode() + b"\r\n\r\n",
        f"GET /{words()} HTTP/1.1\r\nHost: x\r\n{words()}: {words()}\r\n\r\n".encode(),
        f"{words()} /v1/connect?token={words()} HTTP/1.1\r\n\r\n".encode(),
        f"GET /v1/connect?token={words()} HTTP/9.9\r\nAuthorization: Bearer {words()}\r\n\r\n".encode(),
        f"POST /v1/tenants/demo/messages HTTP/1.1\r\nHost: x\r\nContent-Length: {words()}\r\n\r\n".encode(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + words().encode(),
        b"\x16\x03\x01" + words().encode(),
    ]
    for process in (edge, fleet.router):
        host, _, port = process.address.rpartition(":")
        for request in requests:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(request)
            writer.write_eof()
            async with asyncio.timeout(patient(30)):
                while await reader.read(1 << 16):
                    pass
            writer.close()
        with pytest.raises((ssl.SSLError, OSError)):
            await asyncio.open_connection(host, int(port), ssl=ssl.create_default_context())
    with grpc.insecure_channel(fleet.router.address) as channel:
        for method in (
            "/trunkline.v1.BroadcastService/Broadcast",
            f"/x.{words()}/Y",
            "/trunkline.v1.EdgeService/Link",
        ):
            call = channel.unary_unary(method)
            with pytest.raises(grpc.RpcError):
                call(words().encode(), metadata=[("authorization", words())], timeout=patient(10))


async def test_an_unreadable_key_set_is_not_logged(edge: Process, operator: OperatorClient) -> None:
    async with running_jwks_server() as jwks:
        jwks.says(words().encode())
        url = jwks.url(f"/keys?key={words()}").replace("127.0.0.1", f"{words()}:{words()}@127.0.0.1")
        operator.create("fetches", client_auth=client_auth(jwks_url=url))
        await wait_until(lambda: "a JWK Set could not be fetched" in edge.stderr, "that is logged")


def test_the_check_finds_logged_texts() -> None:
    kept = Secrets()
    assert kept.seen_in(f"x{kept.new('one')}y")[0].startswith("0: one: x")
