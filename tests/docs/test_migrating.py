"""The programs in docs/migrating.md behave as described, before and after."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from trunkline_client import Backend, Client, text_of

from tests.support.processes import ROOT, edge_process, router_process

if TYPE_CHECKING:
    from pathlib import Path

PAGE = (ROOT / "docs" / "migrating.md").read_text()
STATUS = '{"status": "success"}'
#: The two programs, by name.
PROGRAMS = {
    name: compile(text, f"migrating.md, {name}", "exec")
    for name, text in re.findall(r"```python (\w+)\n(.*?)```", PAGE, re.DOTALL)
}


def run(name: str) -> dict[str, Any]:
    """Run a program and return its definitions."""
    defined: dict[str, Any] = {}
    exec(PROGRAMS[name], defined)
    return defined


class Socket:
    """The part of a WebSocket that a manager uses."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    async def accept(self) -> None: ...

    async def send_json(self, message: Any) -> None:
        self.sent.append(message)


async def test_before_an_offline_user_is_an_error_and_a_user_in_two_indexes_is_notified_twice() -> None:
    program = run("before")
    socket = Socket()
    await program["manager"].connect(socket, "pipeline_7", "ann")
    assert await program["finished"]("pipeline_7", "ann") == 1
    assert socket.sent == [{"status": "success"}] * 2
    with pytest.raises(KeyError):
        await program["finished"]("pipeline_7", "bob")


async def test_after_both_get_the_message_and_an_offline_user_gets_it_later(tmp_path: Path) -> None:
    finished = run("after")["finished"]
    place = {"tenant": "demo", "agent": "ansflow", "platform": "web", "conversation": "group:pipeline_7"}
    with router_process(tmp_path) as router, edge_process(router.address) as edge:
        async with Backend(router.address) as trunkline:
            async with Client(f"ws://{edge.address}", **place, user="ann") as ann:
                assert await finished(trunkline, "pipeline_7", "bob") == 1
                assert text_of(await anext(aiter(ann))) == STATUS
            bob = {"tenant": "demo", "user": "bob"}
            kept = await trunkline.list_messages(run("after")["address"](**bob))
            assert [text_of(message) for message in kept.messages] == [STATUS]
            assert await finished(trunkline, "empty", "bob") == 0


@pytest.mark.parametrize("name", re.findall(r"`(\w+)\(", PAGE.partition("|---|---|")[2].partition("##")[0]))
def test_every_call_that_the_table_names_is_there(name: str) -> None:
    managers = {"connect", "send_personal_message"}
    assert name in managers or callable(getattr(Backend, name))
