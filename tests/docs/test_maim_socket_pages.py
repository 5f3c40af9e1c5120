"""The examples in docs/dialects/maim_router.md and maim_socket_io.md work with the clients from PyPI."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import TYPE_CHECKING

import pytest
from trunkline_edge.dialects.maim.router_codec import ERROR_TYPE, MAX_FRAME_BYTES
from trunkline_edge.transport.engine_io_packets import MAX_PACKETS

from tests.support.maim_message import environment_of
from tests.support.processes import (
    ROOT,
    Process,
    edge_process,
    router_process,
    worker_process,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGES = {
    name: (ROOT / "docs" / "dialects" / f"{name}.md").read_text()
    for name in ("maim_router", "maim_socket_io")
}
#: Programs of the pages, by page and name.
PROGRAMS = {
    (page, name): program
    for page, text in PAGES.items()
    for name, program in re.findall(r"```python (\w+)\n(.*?)```", text, re.DOTALL)
}


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Addresses of a router and an edge, with the echo agent attached."""
    with (
        router_process(tmp_path_factory.mktemp("pages")) as router,
        edge_process(router.address) as edge,
        worker_process(router.address),
    ):
        yield router.address, edge.address


def program_of(page: str, name: str, addresses: tuple[str, str]) -> str:
    router, edge = addresses
    return PROGRAMS[page, name].replace("127.0.0.1:8080", edge).replace("127.0.0.1:50051", router)


async def run(program: str, version: str) -> str:
    """Run a program with a version of maim_message; return the line that it prints."""
    env = environment_of(version) if version else {}
    program = f"import logging\nlogging.disable()\n{program}"
    with Process([sys.executable, "-c", program], env, "the client", ROOT) as client:
        line = await asyncio.to_thread(client.line)
        assert await asyncio.to_thread(client.wait) == 0
    return line


@pytest.mark.parametrize(
    ("page", "name", "version"),
    [
        ("maim_router", "client", ""),
        ("maim_router", "client", "0.7.5"),
        ("maim_socket_io", "client", "0.7.5"),
        ("maim_socket_io", "plain", ""),
    ],
)
async def test_the_client_is_answered(addresses: tuple[str, str], page: str, name: str, version: str) -> None:
    assert await run(program_of(page, name, addresses), version) == "You said: hello"


async def test_the_agent_answers_where_it_was_asked(addresses: tuple[str, str]) -> None:
    client = program_of("maim_router", "client", addresses).replace("demo:echo", "demo:adapter")
    client = client.replace('"qq"', '"wx"').replace(
        "heard.put_nowait(", "heard.put_nowait(message['message_info']['user_info']['user_id'] + "
    )
    defined: dict[str, object] = {}
    exec(program_of("maim_router", "agent", addresses), defined)
    running = asyncio.create_task(defined["worker"].run())  # type: ignore[attr-defined]
    try:
        assert await run(client, "") == "42You said: hello"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def test_the_limits_and_names_are_the_codes() -> None:
    assert f"frames over {MAX_FRAME_BYTES >> 20} MiB" in PAGES["maim_router"]
    assert f"`{ERROR_TYPE}`" in PAGES["maim_router"]
    assert f"{MAX_PACKETS:,} packets" in PAGES["maim_socket_io"]
