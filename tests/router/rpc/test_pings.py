"""Keepalive pings do not end a connection, whether or not it has calls."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from trunkline_router import grpc_options

from tests.router.rpc.http2_socket import GOAWAY, PING, Http2Socket
from tests.router.rpc.in_process_router import in_process_router

if TYPE_CHECKING:
    from pathlib import Path

#: Instead of seconds, to be quick.
INTERVAL_S = 0.1


async def test_an_idle_connection_may_ping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert grpc_options.MIN_PING_INTERVAL_S < 10
    monkeypatch.setattr(grpc_options, "MIN_PING_INTERVAL_S", INTERVAL_S)
    async with in_process_router(tmp_path) as router:
        idle = await Http2Socket.connect(router.address)
        for _ in range(6):
            assert (await idle.ping()).kind == PING
            # The server measures the interval.
            await asyncio.sleep(1.2 * INTERVAL_S)
        await idle.close()
        flooding = await Http2Socket.connect(router.address)
        answers = [await flooding.ping() for _ in range(3)]
        while answers[-1].kind != GOAWAY and len(answers) < 20:
            answers.append(await flooding.ping())
        assert b"too_many_pings" in answers[-1].payload
        await flooding.close()
