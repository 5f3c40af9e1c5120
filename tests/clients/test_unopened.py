"""Objects used outside their `async with` block, or a worker that does not run, raise RuntimeError."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from trunkline_client import Backend, Client, Message, Publisher, Worker, broadcast_request

from tests.clients.scripted_edge import ALICE, at, connected, message, scripted_edge
from tests.clients.scripted_router import scripted_router

#: Arguments by parameter, for whatever has no default.
ARGUMENTS: dict[str, Any] = {
    "address": ALICE,
    "agent": "echo",
    "content": "hello",
    "delivery_ids": [1],
    "group": "team",
    "message": message(1),
    "message_id": "m1",
    "name": "typing",
    "position": at(1),
    "request": broadcast_request(ALICE, "hello"),
    "tenant": "demo",
}
#: Calls that are for objects which are not open.
LIFECYCLE = {"open", "close", "run", "handler"}


def calls(kind: type) -> list[str]:
    """Names of the public methods that need an open object."""
    return [
        name
        for name, member in inspect.getmembers_static(kind)
        if inspect.isfunction(member) and not name.startswith("_") and name not in LIFECYCLE
    ]


async def call(target: Any, name: str) -> None:
    """Calls a method with arguments of the right types, and awaits or iterates its result."""
    method = getattr(target, name)
    needed = [
        each.name for each in inspect.signature(method).parameters.values() if each.default is each.empty
    ]
    arguments = {each: ARGUMENTS[each] for each in needed}
    if (type(target), name) == (Client, "cancel"):
        arguments["message_id"] = "m1"
    result = method(**arguments)
    if inspect.isasyncgen(result):
        await anext(result)
    elif inspect.isawaitable(result):
        await result


def client() -> Client:
    return Client(
        "ws://127.0.0.1:1", tenant="demo", agent="echo", platform="web", conversation="person:alice"
    )


@pytest.mark.parametrize("name", calls(Backend))
async def test_a_backend_outside_its_block_says_what_to_write(name: str) -> None:
    backend = Backend("127.0.0.1:1")
    with pytest.raises(RuntimeError, match=r"not open: write `async with Backend\(…\) as backend:`"):
        await call(backend, name)
    async with backend:
        pass
    with pytest.raises(RuntimeError, match="not open"):
        await call(backend, name)


@pytest.mark.parametrize("name", calls(Client))
async def test_a_client_outside_its_block_says_what_to_write(name: str) -> None:
    with pytest.raises(RuntimeError, match=r"not open: write `async with Client\(…\) as client:`"):
        await call(client(), name)


async def test_iterating_over_a_client_outside_its_block_says_what_to_write() -> None:
    with pytest.raises(RuntimeError, match=r"write `async with Client"):
        aiter(client())


async def test_a_client_outside_its_block_is_new_and_can_be_closed() -> None:
    ours = client()
    assert ours.state == "new"
    await ours.close()


@pytest.mark.parametrize("name", calls(Publisher))
async def test_a_publisher_outside_its_block_says_what_to_write(name: str) -> None:
    async with Backend("127.0.0.1:1") as backend:
        publisher = backend.publisher()
        with pytest.raises(RuntimeError, match=r"not open: write `async with backend\.publisher"):
            await call(publisher, name)


@pytest.mark.parametrize("name", calls(Worker))
async def test_a_worker_that_does_not_run_says_what_to_write(name: str) -> None:
    worker = Worker("127.0.0.1:1", tenant="demo", agents=["echo"])
    with pytest.raises(RuntimeError, match=r"not running: `await worker.run\(\)`"):
        await call(worker, name)


async def test_a_message_is_written_inside_its_block_only() -> None:
    async with Backend("127.0.0.1:1") as backend:
        with pytest.raises(RuntimeError, match="inside its `async with` block"):
            await backend.open_message(ALICE).write("x")


async def test_nothing_is_entered_twice() -> None:
    async with Backend("127.0.0.1:1") as backend:
        with pytest.raises(RuntimeError, match="open already"):
            await backend.__aenter__()
        async with backend.publisher() as publisher:
            with pytest.raises(RuntimeError, match="entered once"):
                await publisher.__aenter__()
    async with scripted_edge() as edge, connected(edge, edge.client()) as (ours, _):
        with pytest.raises(RuntimeError, match="opened once"):
            await ours.open()


async def test_a_worker_runs_once_at_a_time() -> None:
    async with scripted_router() as router, running(router.address) as worker:
        with pytest.raises(RuntimeError, match="running already"):
            await worker.run()


@asynccontextmanager
async def running(router: str) -> AsyncIterator[Worker]:
    """A worker that runs."""
    worker = Worker(router, tenant="demo", agents=["echo"])

    @worker.handler
    def answer(received: Message) -> None: ...

    task = asyncio.create_task(worker.run())
    await asyncio.sleep(0)
    try:
        yield worker
    finally:
        task.cancel()
        await asyncio.wait({task})
