"""TLS on every connection: clients, workers and backends, and links with client certificates."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING

import certs
import httpx
import pytest
import websockets
from trunkline_client import Backend, Client, ClientSettings, Refused, address, load_credentials, text_of

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.link_settings import edge_link_env, link_address, router_link_env
from tests.e2e.polling import wait_until
from tests.support.certificates import Certificates, serial_of, tls_env
from tests.support.patience import patient
from tests.support.processes import ROOT, environment, worker_process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trunkline_client.credentials import RouterCredentials

PATIENCE_S = patient(10)
QUERY = "tenant=demo&agent=echo&platform=web&conversation=person:ann&user=ann"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certs"))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, ours: Certificates) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("tls"), edges=0, **router_link_env(ours)) as started:
        links = link_address(started.router)
        started.start_edge(**edge_link_env(ours, links), **tls_env("TLS", ours.edge))
        with worker_process(started.router.address, TRUNKLINE_CA=str(ours.ca)):
            yield started


@pytest.fixture
def edge(fleet: Fleet) -> str:
    return fleet.processes[1].address


@pytest.fixture
def tls_access(ours: Certificates) -> RouterCredentials:
    return load_credentials(ca=ours.ca)


async def test_a_client_talks_to_a_worker(edge: str, ours: Certificates) -> None:
    url = f"wss://{edge}/v1/connect?{QUERY}"
    async with websockets.connect(url, ssl=ours.trusting) as client, asyncio.timeout(PATIENCE_S):
        sent = {"type": "message", "id": "m1", "parts": [{"type": "text", "text": "hello"}]}
        await client.send(json.dumps(sent))
        frames = [json.loads(await client.recv()) for _ in range(3)]
    assert [frame["type"] for frame in frames] == ["connected", "ack", "message"]
    assert client.close_code == 1000


async def test_the_client_library_trusts_the_configured_authority(edge: str, ours: Certificates) -> None:
    client = Client(
        f"wss://{edge}",
        tenant="demo",
        agent="echo",
        platform="web",
        conversation="person:bob",
        user="bob",
        settings=ClientSettings(ssl=ours.trusting),
    )
    async with asyncio.timeout(PATIENCE_S), client:
        await client.send("hello")
        assert "hello" in text_of(await anext(aiter(client)))


async def test_a_message_sent_over_https_arrives_on_an_event_stream_over_https(
    edge: str, ours: Certificates
) -> None:
    async with (
        httpx.AsyncClient(base_url=f"https://{edge}", verify=ours.trusting, trust_env=False) as http,
        asyncio.timeout(PATIENCE_S),
        http.stream("GET", f"/v1/events?{QUERY}") as events,
    ):
        lines = events.aiter_lines()
        assert await anext(lines) == "event: connected"
        body = {"address": {"agent": "echo", "platform": "web"}, "parts": [{"text": {"text": "by https"}}]}
        answered = await http.post("/v1/tenants/demo/messages", json=body)
        assert answered.status_code == 200, answered.text
        async for line in lines:
            if "by https" in line:
                break


async def test_a_backend_uses_tls_and_an_api_key(fleet: Fleet, tls_access: RouterCredentials) -> None:
    everybody = address(tenant="demo", agent="echo", platform="web")
    tls_access = {**tls_access, "api_key": fleet.operator_key}
    async with Backend(fleet.router.address, **tls_access) as backend:
        assert (await backend.broadcast(everybody, "hello")).message_id
    async with Backend(fleet.router.address, **{**tls_access, "api_key": "another"}) as backend:
        with pytest.raises(Refused, match="not valid"):
            await backend.broadcast(everybody, "hello")


@pytest.mark.parametrize("command", ["broadcast", "chat"])
def test_the_command_line_uses_tls(fleet: Fleet, edge: str, ours: Certificates, command: str) -> None:
    asked = {
        "broadcast": ["broadcast", "hello", "--router", fleet.router.address],
        "chat": ["chat", "--once", "hello", "--url", f"wss://{edge}", "--agent", "echo", "--user", "eve"],
    }
    arguments = [sys.executable, "-m", "trunkline_client", *asked[command]]
    env = environment({"TRUNKLINE_CA": str(ours.ca)})
    done = subprocess.run(
        arguments, cwd=ROOT, env=env, capture_output=True, text=True, timeout=patient(30), check=False
    )
    assert done.returncode == 0, done.stderr
    assert ("position" if command == "broadcast" else "You said: hello") in done.stdout


def handshake(listening: str, ours: Certificates) -> ssl.SSLSocket:
    """Open a TLS connection to a process."""
    host, port = listening.split(":")
    tcp = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    return ours.trusting.wrap_socket(tcp, server_hostname=host)


def current_serial(listening: str, ours: Certificates) -> str:
    """Return the serial number of a process's current certificate."""
    with handshake(listening, ours) as connection:
        return serial_of(connection)


def tls_1_2_handshake(listening: str, ours: Certificates, suite: str) -> str:
    """Shake hands by TLS 1.2 with one cipher suite; return the suite in use. Raises SSLError."""
    context = ours.trusting
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"{suite}:@SECLEVEL=0")
    context.set_alpn_protocols(["h2", "http/1.1"])
    host, _, port = listening.rpartition(":")
    with (
        socket.create_connection((host, int(port)), PATIENCE_S) as sock,
        context.wrap_socket(sock, server_hostname=host) as encrypted,
    ):
        in_use = encrypted.cipher()
        assert in_use
        return in_use[0]


def test_tls_1_2_takes_suites_with_aead_only(fleet: Fleet, edge: str, ours: Certificates) -> None:
    for listening in (edge, fleet.router.address):
        for modern in ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384"):
            assert tls_1_2_handshake(listening, ours, modern) == modern
        for outdated in ("ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA384", "ECDHE-ECDSA-AES128-SHA256"):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                tls_1_2_handshake(listening, ours, outdated)


async def test_certificates_are_replaced_without_interruption(
    fleet: Fleet, edge: str, ours: Certificates, tls_access: RouterCredentials
) -> None:
    everybody = address(tenant="demo", agent="echo", platform="web")
    async with (
        websockets.connect(f"wss://{edge}/v1/connect?{QUERY}", ssl=ours.trusting) as client,
        Backend(fleet.router.address, **tls_access) as backend,
        asyncio.timeout(3 * PATIENCE_S),
    ):
        await backend.broadcast(everybody, "before")
        shows = (edge, fleet.router.address, link_address(fleet.router))
        before = [current_serial(each, ours) for each in shows]
        ours.renew(ours.edge)
        ours.renew(ours.router)
        await wait_until(
            lambda: all(current_serial(e, ours) != b for e, b in zip(shows, before, strict=True)), "new ones"
        )
        # Existing connections continue: the backend's, the link, and the client's.
        await backend.broadcast(everybody, "after")
        while "after" not in await client.recv():
            pass
    assert "no link to the router" not in fleet.processes[1].stderr


async def test_a_stalled_handshake_delays_nobody(
    fleet: Fleet, edge: str, ours: Certificates, tls_access: RouterCredentials
) -> None:
    halted = []
    for listening in (edge, fleet.router.address):
        host, port = listening.split(":")
        for _ in range(50):
            tcp = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
            # The header of a TLS record of 512 bytes, without its content.
            tcp.sendall(b"\x16\x03\x01\x02\x00\x01")
            halted.append(tcp)
    async with asyncio.timeout(PATIENCE_S), Backend(fleet.router.address, **tls_access) as backend:
        async with websockets.connect(f"wss://{edge}/v1/connect?{QUERY}", ssl=ours.trusting) as client:
            assert json.loads(await client.recv())["type"] == "connected"
        await backend.broadcast(address(tenant="demo", agent="echo", platform="web"), "hello")
    for tcp in halted:
        tcp.close()


def test_a_process_with_an_unusable_certificate_reports_it_and_does_not_start(ours: Certificates) -> None:
    mixed = tls_env("TLS", ours.edge) | {"TRUNKLINE_TLS_KEY": str(certs.key_of(ours.router))}
    for name in ("router", "edge"):
        env = environment(mixed | {f"TRUNKLINE_{name.upper()}_LISTEN": "127.0.0.1:0"})
        arguments = [sys.executable, "-m", f"trunkline_{name}", "serve"]
        data = {"TRUNKLINE_DATA_DIR": str(ours.folder / "data")}
        done = subprocess.run(
            arguments,
            cwd=ROOT,
            env=env | data,
            capture_output=True,
            text=True,
            timeout=patient(30),
            check=False,
        )
        assert done.returncode == 1
        # The first may be about the limit of file descriptors.
        line = done.stderr.splitlines()[-1]
        assert "key values mismatch" in line
        assert "TRUNKLINE_TLS_CERT" in line
