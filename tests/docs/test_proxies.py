"""The proxies of docs/security.md, set up as shown, open no tenant that is open to this machine only."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest
import websockets
from websockets.exceptions import InvalidStatus

from tests.support.patience import patient
from tests.support.processes import ROOT, Process, edge_process, environment, router_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = (ROOT / "docs" / "security.md").read_text()
[NGINX] = re.findall(r"```nginx\n(.*?)```", PAGE, re.DOTALL)
[CADDY] = re.findall(r"```caddy\n(.*?)```", PAGE, re.DOTALL)
[ENVOY] = re.findall(r"```yaml\n(filter_chains.*?)```", PAGE, re.DOTALL)
TENANTS = """
[tenants.here]
open_to = "loopback"
[tenants.closed]
tokens = ["s3cret"]
"""
PLACE = "agent=echo&platform=web&conversation=person:ann"


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    data = tmp_path_factory.mktemp("proxies")
    (data / "tenants.toml").write_text(TENANTS)
    env = {"TRUNKLINE_TENANTS": "", "TRUNKLINE_TENANTS_FILE": str(data / "tenants.toml")}
    with router_process(data, **env) as router, edge_process(router.address) as started:
        yield started


@contextmanager
def nginx(folder: Path, servers: str) -> Iterator[Path]:
    """Run nginx with these servers on a Unix socket in a folder; yield the socket's path."""
    program = shutil.which("nginx")
    if program is None:
        pytest.skip("nginx is not installed")
    temporary = "".join(
        f"{kind}_temp_path {folder / kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    http = f"access_log off;\n{temporary}{servers}"
    (folder / "nginx.conf").write_text(
        f"daemon off;\npid {folder / 'pid'};\nerror_log stderr;\nevents {{}}\nhttp {{\n{http}\n}}\n"
    )
    path = folder / "proxy.sock"
    with proxy([program, "-p", str(folder), "-c", "nginx.conf"], folder, str(path)):
        yield path


@contextmanager
def proxy(command: list[str], folder: Path, address: str | tuple[str, int]) -> Iterator[None]:
    """Run a proxy until it listens at a path or an address, and then until the block ends.

    It may write to `folder`.
    """
    running = subprocess.Popen(command, env=environment({"HOME": str(folder)}))
    try:
        until = time.monotonic() + patient(20)
        while not listens(address):
            assert running.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        yield
    finally:
        running.terminate()
        running.wait(patient(10))


def listens(address: str | tuple[str, int]) -> bool:
    """Whether a server listens."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client:
        try:
            client.connect(address)
        except OSError:
            return False
    return True


def documented_nginx(edge: Process, path: Path) -> str:
    servers = re.sub(r" +ssl_.*\n", "", NGINX)
    servers = servers.replace("listen 443 ssl", f"listen unix:{path}")
    return servers.replace("127.0.0.1:8080", edge.address)


async def check(path: Path, host: str = "chat.example.com") -> None:
    """Check that calls and sockets with proof pass, and that those without are refused."""
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(
        transport=transport, base_url=f"http://{host}/v1/tenants", trust_env=False, timeout=patient(10)
    ) as http:
        refused = await http.get("/here/stats")
        assert (refused.status_code, refused.json()["details"][0]["reason"]) == (401, "UNAUTHORIZED")
        assert (await http.get("/closed/stats", headers={"x-api-key": "s3cret"})).status_code == 200
    url = f"ws://{host}/v1/connect?{PLACE}&tenant="
    async with websockets.unix_connect(str(path), f"{url}closed&token=s3cret") as client:
        assert json.loads(await client.recv())["type"] == "connected"
    with pytest.raises(InvalidStatus, match="401"):
        await websockets.unix_connect(str(path), f"{url}here")


def test_without_a_proxy_the_tenant_is_open(edge: Process) -> None:
    found = httpx.get(f"http://{edge.address}/v1/tenants/here/stats", trust_env=False, timeout=patient(10))
    assert found.status_code == 200


async def test_nginx_as_documented(edge: Process, tmp_path: Path) -> None:
    with nginx(tmp_path, documented_nginx(edge, tmp_path / "proxy.sock")) as path:
        await check(path)
        # A caller that names a local host is still behind a proxy.
        await check(path, "localhost")


@pytest.mark.parametrize("more", ["", "proxy_set_header Host localhost;", "proxy_set_header Host $host;"])
async def test_a_bare_proxy_pass_opens_nothing(edge: Process, tmp_path: Path, more: str) -> None:
    path = tmp_path / "proxy.sock"
    location = f"location / {{ proxy_pass http://{edge.address}; {more} }}"
    with nginx(tmp_path, f"server {{ listen unix:{path}; {location} }}"):
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, trust_env=False, timeout=patient(10)) as http:
            answer = await http.get("http://chat.example.com/v1/tenants/here/stats")
            assert (answer.status_code, answer.json()["details"][0]["reason"]) == (401, "UNAUTHORIZED")


async def test_caddy_as_documented(edge: Process, tmp_path: Path) -> None:
    program = shutil.which("caddy")
    if program is None:
        pytest.skip("caddy is not installed")
    # On TCP: Caddy does not name clients on a Unix socket.
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    site = CADDY.replace("chat.example.com", f"http://:{port}")
    config = f"{{\n    admin off\n}}\n{site.replace('127.0.0.1:8080', edge.address)}"
    (tmp_path / "Caddyfile").write_text(config)
    command = [program, "run", "--adapter", "caddyfile", "--config", str(tmp_path / "Caddyfile")]
    with proxy(command, tmp_path, ("127.0.0.1", port)):
        async with httpx.AsyncClient(trust_env=False, timeout=patient(10)) as http:
            for host in ("chat.example.com", "localhost"):
                headers = {"host": host}
                refused = await http.get(f"http://{address}/v1/tenants/here/stats", headers=headers)
                assert refused.status_code == 401
        url = f"ws://{address}/v1/connect?{PLACE}&tenant="
        async with websockets.connect(f"{url}closed&token=s3cret", proxy=None) as client:
            assert json.loads(await client.recv())["type"] == "connected"
        with pytest.raises(InvalidStatus, match="401"):
            await websockets.connect(f"{url}here", proxy=None)


def test_envoy_as_documented_is_yaml_that_names_clients_and_upgrades() -> None:
    for wanted in ("use_remote_address: true", "upgrade_type: websocket", "timeout: 0s"):
        assert wanted in ENVOY
