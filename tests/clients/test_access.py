"""Credentials of backends and workers: an API key with every call, with and without TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import certs
import grpc.aio
import pytest
from trunkline_client import (
    Backend,
    Message,
    OutcomeUnknown,
    Refused,
    Worker,
    address,
    broadcast_request,
    load_credentials,
    load_credentials_from_environment,
)
from trunkline_client.credentials import RouterCredentials

from tests.support.certificates import Certificates
from tests.support.patience import patient

KEY = "tl_0123456789abcdef_secret"
TO = address(tenant="demo")
PATIENCE_S = patient(5)


class CredentialRecorder(grpc.aio.ServerInterceptor):
    """Records the credentials of each call; serves nothing."""

    def __init__(self) -> None:
        self.credentials: dict[str, list[Any]] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        metadata = handler_call_details.invocation_metadata
        rpc = handler_call_details.method.rpartition("/")[2]
        self.credentials[rpc] = [value for name, value in metadata if name == "authorization"]
        return await continuation(handler_call_details)


@asynccontextmanager
async def recording_router(ours: Certificates | None = None) -> AsyncIterator[tuple[str, CredentialRecorder]]:
    """A router that rejects every call, with TLS if there are certificates."""
    found = CredentialRecorder()
    server = grpc.aio.server(interceptors=[found])
    if ours is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        pair = (certs.key_of(ours.router).read_bytes(), ours.router.read_bytes())
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield f"127.0.0.1:{port}", found
    finally:
        await server.stop(None)


async def call_all(router: str, loaded: RouterCredentials) -> None:
    """Makes a call of each kind."""

    async def never(_: Message) -> None: ...

    async with Backend(router, **loaded) as backend:
        with pytest.raises(Refused):
            await backend.broadcast(TO, "hello")
        with pytest.raises(Refused):
            await anext(backend.watch_connections(TO))
        with suppress(Refused, OutcomeUnknown):
            async with backend.publisher() as publisher:
                await publisher.publish(broadcast_request(TO, "hello"))
    with pytest.raises(Refused):
        await Worker(router, tenant="demo", agents=["a"], **loaded).run(never)


@pytest.mark.parametrize("encrypted", [False, True])
async def test_the_api_key_goes_with_every_call(tmp_path: Path, encrypted: bool) -> None:
    ours = Certificates(tmp_path) if encrypted else None
    loaded = load_credentials(KEY, ours.ca if ours else "")
    assert (loaded["credentials"] is not None) is encrypted
    async with recording_router(ours) as (router, found):
        await call_all(router, loaded)
    assert found.credentials.keys() == {"Broadcast", "WatchConnections", "BroadcastMany", "Attach"}
    assert all(values == [f"Bearer {KEY}"] for values in found.credentials.values())


async def test_without_an_api_key_none_is_sent() -> None:
    async with recording_router() as (router, found):
        await call_all(router, load_credentials())
    assert len(found.credentials) == 4
    assert not any(found.credentials.values())


def test_credentials_are_loaded_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TRUNKLINE_API_KEY", "TRUNKLINE_CA", "TRUNKLINE_TLS", "TRUNKLINE_ROUTER_PROXY"):
        monkeypatch.delenv(name, raising=False)
    nothing = {"credentials": None, "api_key": "", "use_proxy": False}
    assert load_credentials_from_environment() == nothing
    monkeypatch.setenv("TRUNKLINE_ROUTER_PROXY", "true")
    assert load_credentials_from_environment()["use_proxy"]
    monkeypatch.setenv("TRUNKLINE_API_KEY", KEY)
    assert load_credentials_from_environment()["api_key"] == KEY
    monkeypatch.setenv("TRUNKLINE_TLS", "true")
    assert load_credentials_from_environment()["credentials"] is not None
    monkeypatch.setenv("TRUNKLINE_CA", str(tmp_path / "none.pem"))
    with pytest.raises(FileNotFoundError):
        load_credentials_from_environment()
