"""Channels from an edge to its router: reloaded certificates, and the link key."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import certs
import grpc
import grpc.aio
import pytest
import trunkline_runtime.certificates
from trunkline.v1.presence_service_pb2 import DESCRIPTOR, GetStatsRequest, GetStatsResponse
from trunkline.v1.presence_service_pb2_grpc import (
    PresenceServiceServicer,
    add_PresenceServiceServicer_to_server,
)
from trunkline_edge.http.router_client import CallFailed, RouterClient
from trunkline_edge.router_channel import RouterChannelFactory
from trunkline_edge.settings import EdgeSettings
from trunkline_runtime.process import StartError
from trunkline_runtime.router_addresses import RouterAddresses

from tests.support.certificates import Certificates
from tests.support.patience import patient

PATIENCE_S = patient(5)
STATS = DESCRIPTOR.services_by_name["PresenceService"].methods_by_name["GetStats"]
KEY = "the-key-of-the-links"


class Presence(PresenceServiceServicer):
    """Records callers and their metadata."""

    def __init__(self) -> None:
        self.callers: list[bytes] = []
        self.keys: list[str] = []

    async def GetStats(self, request: GetStatsRequest, context: Any) -> GetStatsResponse:  # noqa: N802
        self.callers += context.auth_context()["x509_pem_cert"]
        shown = dict(context.invocation_metadata())
        self.keys.append(shown.get("trunkline-link-key", ""))
        return GetStatsResponse()


def settings(ours: Certificates, **others: Any) -> EdgeSettings:
    client = {"router_cert": ours.client, "router_key": certs.key_of(ours.client)}
    return EdgeSettings(**{"router_ca": ours.ca, **client, **others})


async def test_calls_show_the_link_key_and_the_certificate_that_there_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trunkline_runtime.certificates, "CHECK_INTERVAL_S", 0.0)
    ours = Certificates(tmp_path)
    server, presence = grpc.aio.server(), Presence()
    add_PresenceServiceServicer_to_server(presence, server)
    pair = (certs.key_of(ours.router).read_bytes(), ours.router.read_bytes())
    credentials = grpc.ssl_server_credentials([pair], ours.ca.read_bytes(), require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    calls = RouterClient(
        RouterAddresses(f"127.0.0.1:{port}"), RouterChannelFactory.from_settings(settings(ours, link_key=KEY))
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            await calls.unary(STATS, GetStatsRequest())
            await calls.unary(STATS, GetStatsRequest())
            ours.renew_client()
            await calls.unary(STATS, GetStatsRequest())
    finally:
        await calls.close()
        await server.stop(None)
    first, again, renewed = (caller.strip() for caller in presence.callers)
    assert first == again != renewed == ours.client.read_bytes().strip()
    assert presence.keys == [KEY] * 3
    with pytest.raises(CallFailed, match="restarting"):
        await calls.unary(STATS, GetStatsRequest())


def test_without_settings_the_way_is_in_plain_text_and_nothing_is_shown() -> None:
    way = RouterChannelFactory.from_settings(EdgeSettings())
    assert not way.is_encrypted
    assert way.metadata == ()


@pytest.mark.parametrize("missing", ["router_cert", "router_key"])
def test_half_of_a_pair_is_refused(tmp_path: Path, missing: str) -> None:
    with pytest.raises(StartError, match="must be set together"):
        RouterChannelFactory.from_settings(settings(Certificates(tmp_path), **{missing: None}))


def test_files_that_are_of_no_use_are_refused_by_their_names(tmp_path: Path) -> None:
    ours, rubbish = Certificates(tmp_path), tmp_path / "rubbish"
    rubbish.write_text("rubbish")
    for name in ("router_ca", "router_cert", "router_key"):
        with pytest.raises(StartError, match=r"rubbish.*TRUNKLINE_ROUTER_CA"):
            RouterChannelFactory.from_settings(settings(ours, **{name: rubbish}))
