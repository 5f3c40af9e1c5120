"""Clients that send all the time while a test injects faults, and the check of every promise."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from tests.e2e.polling import wait_until
from tests.e2e.promise_checks import assert_promises_kept, wait_until_caught_up
from tests.e2e.recording_client import RecordingClient
from tests.validators.history import History

if TYPE_CHECKING:
    from tests.e2e.postgres.standby_fleet import StandbyFleet

#: Unacked messages of each client.
IN_FLIGHT = 16
_groups = itertools.count(1)


class ClientLoad:
    """Clients that keep their sockets whatever happens."""

    def __init__(self, fleet: StandbyFleet, clients: list[RecordingClient], history: History) -> None:
        self.fleet = fleet
        self.clients = clients
        self.history = history
        self.stopping = asyncio.Event()

    @property
    def acks(self) -> int:
        """Acked messages so far."""
        return sum(client.acks for client in self.clients)

    async def await_acks(self, count: int) -> None:
        """Wait until this many messages more are acked."""
        wanted = self.acks + count
        try:
            await wait_until(lambda: self.acks >= wanted, f"{count} messages are acked")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.fleet.logs()}") from None

    async def send(self, client: RecordingClient) -> None:
        """Send until `stopping`, up to IN_FLIGHT messages at a time."""
        number = 0
        while not self.stopping.is_set():
            if len(client.unacked) < IN_FLIGHT:
                number += 1
                await client.say(f"{client.user} says {number}")
            await asyncio.sleep(0 if number % 8 else 0.002)


@asynccontextmanager
async def load_on(fleet: StandbyFleet, users: int = 4) -> AsyncIterator[ClientLoad]:
    """Let clients of one group send during the block, and one more listen; check every promise at its end."""
    history, group = History(), f"group:load-{next(_groups)}"
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                RecordingClient(
                    history,
                    f"demo/user{number}",
                    fleet.edges[number % len(fleet.edges)].address,
                    group,
                    agent="load",
                )
            )
            for number in range(users)
        ]
        load = ClientLoad(fleet, clients, history)
        sending = [asyncio.create_task(load.send(client)) for client in clients[:-1]]
        try:
            await load.await_acks(20)
            yield load
            load.stopping.set()
            await asyncio.gather(*sending)
        finally:
            for task in sending:
                task.cancel()
        await wait_until_caught_up(fleet, clients)
        assert not any(client.closed for client in clients), "the edges keep their sockets"
        assert_promises_kept(fleet, history, clients)
