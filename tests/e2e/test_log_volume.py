"""Hostile connections cost few log lines, all structured and without a traceback."""

from __future__ import annotations

import json
import ssl
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.hostile_bytes import GRPC_BYTES, HTTP_BYTES, attack
from tests.support.certificates import Certificates, tls_env

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.processes import Process

#: Of one process, for all attacks of one test.
MAX_BYTES = 8_000


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, ours: Certificates) -> Iterator[Fleet]:
    """Router, edge, and an edge with TLS."""
    with fleet_of(tmp_path_factory.mktemp("fleet")) as started:
        started.start_edge(**tls_env("TLS", ours.edge))
        yield started


def trusting(path: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=path)
    context.check_hostname = False
    return context


def check_lines(process: Process, text: str) -> None:
    """Fail if there is much text, or a line that is no object with an event, or an exception."""
    for line in text.splitlines():
        fields = json.loads(line)
        assert {"event", "level", "timestamp"} <= fields.keys(), line
        assert "exception" not in fields, line
    assert len(text) < MAX_BYTES, f"{process.name} wrote {len(text)} bytes:\n{text}"


async def test_bytes_that_are_no_http_cost_an_edge_few_lines(fleet: Fleet, ours: Certificates) -> None:
    plain, encrypted = fleet.edges
    before = [len(edge.stderr) for edge in fleet.edges]
    sent = await attack(plain.address, HTTP_BYTES)
    sent += await attack(encrypted.address, HTTP_BYTES)
    sent += await attack(encrypted.address, HTTP_BYTES, trusting(ours.ca))
    assert sent > 500
    for edge, begin in zip(fleet.edges, before, strict=True):
        check_lines(edge, edge.stderr[begin:])
        assert '"a client was refused"' in edge.stderr
    assert '"TLS handshake: ' in encrypted.stderr


async def test_bytes_that_are_no_grpc_cost_a_router_few_lines(fleet: Fleet) -> None:
    before = len(fleet.router.stderr)
    assert await attack(fleet.router.address, GRPC_BYTES) > 150
    async with grpc.aio.insecure_channel(fleet.router.address) as channel:
        for name in GRPC_BYTES:
            _, is_call, rpc = name.partition("unreadable ")
            for leaves in (False, True) * 10 if is_call else ():
                call = channel.stream_stream(f"/{rpc}")()
                await call.write(b"\xff\xff\xff")
                if leaves:
                    call.cancel()
                else:
                    await call.done_writing()
                    assert await call.code() is not grpc.StatusCode.OK
    check_lines(fleet.router, fleet.router.stderr[before:])
