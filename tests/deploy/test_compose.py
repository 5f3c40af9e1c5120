"""docker-compose.yml, run as plain processes on loopback instead of in Docker."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import websockets
import yaml

from tests.support.certificates import Certificates, tls_env
from tests.support.patience import patient
from tests.support.processes import ROOT, Process, edge_process, router_process
from tests.support.processes import environment as in_environment

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def dockerfile(service: str) -> str:
    """Text of a service's Dockerfile, with continued lines joined."""
    return (ROOT / SERVICES[service]["build"]["dockerfile"]).read_text().replace("\\\n", " ")


def exec_form(service: str, instruction: str) -> list[str]:
    """Words of ENTRYPOINT or CMD in a service's Dockerfile."""
    (found,) = re.findall(rf"^{instruction} (\[.*\])$", dockerfile(service), re.MULTILINE)
    words: list[str] = json.loads(found)
    return words


def command(service: str) -> list[str]:
    """Command of the container, with this interpreter and paths on this machine."""
    declared = SERVICES[service]
    entrypoint = declared.get("entrypoint") or exec_form(service, "ENTRYPOINT")
    words = entrypoint + (declared["command"] if "command" in declared else exec_form(service, "CMD"))
    words = [on_this_machine(service, word) for word in words]
    return [str(Path(sys.executable).with_name(words[0])), *words[1:]]


def on_this_machine(service: str, word: str) -> str:
    """Replace paths in the container by the host paths that are mounted there."""
    for volume in SERVICES[service].get("volumes", []):
        source, target = volume.split(":")[:2]
        if source.startswith("./"):
            word = word.replace(target, str(ROOT / source))
    return word


def environment(service: str, data: Path, addresses: dict[str, str]) -> dict[str, str]:
    """Variables of the image and the container, adapted to this machine.

    Listeners get free ports on loopback; names of other services become the addresses they listen on.
    """
    (image,) = re.findall(r"^ENV (.*)$", dockerfile(service), re.MULTILINE)
    variables = dict(pair.split("=", 1) for pair in image.split()) | SERVICES[service].get("environment", {})
    for name, declared in variables.items():
        # Variables that compose would take from the caller's environment keep their defaults.
        value = re.sub(r"\$\{\w+:-(.*)\}", r"\1", declared)
        host, colon, _ = value.partition(":")
        if host == "0.0.0.0":
            variables[name] = "127.0.0.1:0"
        elif colon and host in addresses:
            variables[name] = addresses[host]
        elif value == "/data":
            variables[name] = str(data)
        else:
            variables[name] = on_this_machine(service, value)
    return variables


def check_health(service: str, inside: str, address: str, **env: str) -> None:
    """Run the HEALTHCHECK of a service's image against `address` instead of the address in the container."""
    (check,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", dockerfile(service), re.MULTILINE)
    python, *words = json.loads(check)
    assert python == "python"
    assert inside in check
    words = [word.replace(inside, address) for word in words]
    done = subprocess.run(
        [sys.executable, *words],
        env=in_environment(env),
        capture_output=True,
        text=True,
        timeout=patient(10),
        check=False,
    )
    assert done.returncode == 0, done.stderr


def start_order() -> list[str]:
    """Services, each after its dependencies."""
    order: list[str] = []
    while len(order) < len(SERVICES):
        ready = [
            name
            for name, service in SERVICES.items()
            if name not in order and set(service.get("depends_on", {})) <= set(order)
        ]
        assert ready, "circular dependency between services"
        order += ready
    return order


async def test_a_client_gets_an_answer_from_the_services_of_the_compose_file(tmp_path: Path) -> None:
    addresses: dict[str, str] = {}
    with ExitStack() as running:
        for service in start_order():
            listens = any(name.endswith("_LISTEN") for name in SERVICES[service]["environment"])
            process = Process.start(
                command(service),
                environment(service, tmp_path, addresses),
                name=service,
                ready=None if listens else bool,
            )
            running.enter_context(process)
            addresses[service] = process.address
        url = (
            f"ws://{addresses['edge']}/v1/connect?tenant=demo&agent=echo&platform=web&conversation=person:ann"
        )
        async with websockets.connect(url) as client:
            await client.send(
                json.dumps({"type": "message", "id": "m1", "parts": [{"type": "text", "text": "hello"}]})
            )
            frames = [json.loads(await client.recv()) for _ in range(3)]
        assert [frame["type"] for frame in frames] == ["connected", "ack", "message"]
        assert "hello" in frames[2]["parts"][0]["text"]
        for service, inside in (("router", "127.0.0.1:50051"), ("edge", "127.0.0.1:8080")):
            check_health(service, inside, addresses[service])


def test_health_checks_of_the_images_also_work_over_tls(tmp_path: Path) -> None:
    ours = Certificates(tmp_path / "certs")
    by_tls = {"TRUNKLINE_ROUTER_CA": str(ours.ca)} | tls_env("TLS", ours.edge)
    with (
        router_process(tmp_path, **tls_env("TLS", ours.router)) as router,
        edge_process(router.address, **by_tls) as edge,
    ):
        check_health("router", "127.0.0.1:50051", router.address, **tls_env("TLS", ours.router))
        check_health("edge", "127.0.0.1:8080", edge.address, **tls_env("TLS", ours.edge))


def test_every_port_is_published_on_loopback_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []


def test_images_listen_on_the_ports_that_the_compose_file_publishes() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            inside = port.rpartition(":")[2]
            assert f"\nEXPOSE {inside}\n" in dockerfile(name)
            assert inside in {value.rpartition(":")[2] for value in service["environment"].values()}


def test_images_do_not_run_as_root() -> None:
    for service in SERVICES:
        users = re.findall(r"^USER (.*)$", dockerfile(service), re.MULTILINE)
        assert users
        assert users[-1] not in ("root", "0")
