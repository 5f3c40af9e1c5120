"""A router that encrypts what it stores, killed and started with other data keys."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import grpc
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest
from trunkline.v1.broadcast_service_pb2_grpc import BroadcastServiceStub
from trunkline.v1.history_service_pb2 import ListMessagesRequest
from trunkline.v1.history_service_pb2_grpc import HistoryServiceStub
from trunkline.v1.tenant_pb2 import ClientAuth, TenantSettings, VerificationKey
from trunkline.v1.tenant_service_pb2 import CreateTenantRequest
from trunkline.v1.tenant_service_pb2_grpc import TenantServiceStub

from tests.e2e.grpc_backend import AS_OPERATOR, address, text_of
from tests.e2e.polling import wait_until
from tests.router.log.test_encryption import data_keys, row
from tests.support.patience import patient
from tests.support.processes import Process, environment, router_process

TEXT = "what only the reader may know"
SECRET = base64.urlsafe_b64encode(b"a secret that signs tokens, of bytes").decode().rstrip("=")
ROOM = address("acme/echo/web/group:room")
TIMEOUT_S = patient(15)


def write_keys(path: Path, *numbers: int) -> None:
    """Replace the file of data keys."""
    path.with_suffix(".new").write_text("\n".join(row(byte) for byte in numbers))
    path.with_suffix(".new").replace(path)


def create_tenant(channel: grpc.Channel) -> None:
    """Create a tenant with a signing secret, whose messages are encrypted."""
    jwk = json.dumps({"kty": "oct", "k": SECRET})
    auth = ClientAuth(keys=[VerificationKey(kid="shared", algorithm="HS256", jwk=jwk)])
    settings = TenantSettings(client_auth=auth, encrypt_messages=True)
    request = CreateTenantRequest(tenant="acme", settings=settings)
    TenantServiceStub(channel).CreateTenant(request, metadata=AS_OPERATOR, timeout=TIMEOUT_S)


def say(channel: grpc.Channel, text: str) -> None:
    request = BroadcastRequest(address=ROOM)
    request.parts.add().text.text = text
    BroadcastServiceStub(channel).Broadcast(request, metadata=AS_OPERATOR, timeout=TIMEOUT_S)


def history(router: Process) -> list[str]:
    with grpc.insecure_channel(router.address) as channel:
        request = ListMessagesRequest(address=ROOM, limit=10)
        page = HistoryServiceStub(channel).ListMessages(request, metadata=AS_OPERATOR, timeout=TIMEOUT_S)
    return [text_of(message) for message in page.messages]


def shown(folder: Path) -> list[str]:
    """Those of the secrets that a file of the folder shows."""
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return [text for text in (TEXT, SECRET) if text.encode() in content]


def refused_start(data: Path, given: dict[str, str]) -> str:
    """Start a router that must not start. Returns its error."""
    env = {"TRUNKLINE_DATA_DIR": str(data), "TRUNKLINE_ROUTER_LISTEN": "127.0.0.1:0", **given}
    refused = subprocess.run(
        [sys.executable, "-m", "trunkline_router", "serve"],
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=patient(30),
        check=False,
    )
    assert refused.returncode == 1
    [line] = [line for line in refused.stderr.splitlines() if line.startswith("router: ")]
    return line


async def test_a_data_key_is_rotated_while_a_router_runs_and_without_it_none_starts(tmp_path: Path) -> None:
    data, keys = tmp_path / "data", tmp_path / "keys"
    write_keys(keys, 1)
    env = {"TRUNKLINE_DATA_KEY_FILE": str(keys)}
    with router_process(data, **env) as router:
        with grpc.insecure_channel(router.address) as channel:
            create_tenant(channel)
            say(channel, f"{TEXT} 1")
            write_keys(keys, 2, 1)
            await wait_until(lambda: "data keys reloaded" in router.stderr, "the new key is in use")
            say(channel, f"{TEXT} 2")
        assert history(router) == [f"{TEXT} 1", f"{TEXT} 2"]
        assert shown(data) == []
        router.kill()
        assert not any(row(byte) in router.stderr for byte in (1, 2))
    write_keys(keys, 2)
    with router_process(data, **env) as router:
        assert history(router) == [f"{TEXT} 1", f"{TEXT} 2"]
        router.kill()
    for given in ({}, {"TRUNKLINE_DATA_KEY": row(1)}):
        line = refused_start(data, given)
        assert "TRUNKLINE_DATA_KEY" in line
        assert data_keys(2).current.key_id in line
