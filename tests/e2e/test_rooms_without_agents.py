"""Rooms whose agents have no worker: what people write there is kept, and only deliveries end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from trunkline.v1.message_pb2 import WITHOUT_WORKER_KEEP, WITHOUT_WORKER_SKIP
from trunkline.v1.presence_service_pb2 import AgentStats
from trunkline.v1.tenant_pb2 import OPENNESS_ANYBODY, AgentSettings

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.operator_client import OperatorClient, wait_until_known
from tests.e2e.polling import wait_until
from tests.e2e.promise_checks import assert_promises_kept
from tests.e2e.recording_client import RecordingClient
from tests.e2e.streaming_worker import StreamingWorker
from tests.support.patience import under_load
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Settings of agents by name; `plain` has the defaults.
AGENTS = {
    "skip": AgentSettings(without_worker=WITHOUT_WORKER_SKIP),
    "keep": AgentSettings(without_worker=WITHOUT_WORKER_KEEP, expire_after_s=1),
    "few": AgentSettings(max_waiting=3),
}
PEOPLE = 10


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("agentless")) as started:
        yield started


async def test_messages_stay_while_deliveries_expire_are_skipped_kept_or_too_many(fleet: Fleet) -> None:
    history, (edge,) = History(), fleet.edges
    expire_s = round(under_load(2))
    agents = AGENTS | {"expire": AgentSettings(expire_after_s=expire_s)}
    with OperatorClient(fleet.router.address, fleet.operator_key, fleet.edges) as operator:
        operator.create("rooms", open_to=OPENNESS_ANYBODY, agents=agents)
        wait_until_known("rooms", edge)

        def stats(agent: str) -> AgentStats:
            return next((one for one in operator.stats("rooms").agents if one.agent == agent), AgentStats())

        clients = [
            RecordingClient(history, f"rooms/{agent}", edge.address, "group:people", agent=agent)
            for agent in (*agents, "plain")
        ]
        for client in clients:
            async with client:
                for number in range(PEOPLE):
                    await client.next("ack", id=await client.say(f"{client.user} {number}"))
                choice = "keep" if client.user == "expire" else "skip"
                await client.next("ack", id=await client.say("own choice", without_worker=choice))
        found = {client.user: stats(client.user) for client in clients}
        assert (found["skip"].skipped, found["skip"].waiting) == (PEOPLE + 1, 0)
        for name in ("keep", "plain"):
            assert (found[name].skipped, found[name].waiting) == (1, PEOPLE)
        # Those that were being committed while it was counted may exceed the bound.
        assert found["few"].overflowed == PEOPLE - found["few"].waiting > 0
        await fleet.restart_router()
        await wait_until(lambda: stats("expire").waiting == 1, "all but the kept one expire")
        await wait_until(lambda: stats("expire").expired == PEOPLE, "they are removed")
        for name, expected in (("expire", 1), ("skip", 0), ("keep", PEOPLE), ("plain", PEOPLE)):
            async with StreamingWorker(fleet.router.address, name, tenant="rooms") as worker:
                for number in range(expected):
                    await wait_until(
                        lambda n=number, w=worker: len(w.deliveries) == n + 1, f"{name} {number}"
                    )
                    await worker.settle(worker.deliveries[-1].delivery_id)
                await wait_until(lambda n=name: not stats(n).waiting and not stats(n).held, "all are settled")
                kept = [f"{name} {number}" for number in range(expected)]
                texts = [each.message.parts[0].text.text for each in worker.deliveries]
                assert texts == (["own choice"] if name == "expire" else kept)
        # Nothing of what people wrote is missing.
        for client in clients:
            async with client:
                await client.send({"type": "history", "id": "all", "limit": 500})
                assert len((await client.next("history", id="all"))["messages"]) == PEOPLE + 1
        assert_promises_kept(fleet, history, clients)


async def test_a_bad_choice_is_refused_on_sockets(fleet: Fleet) -> None:
    history = History()
    async with RecordingClient(history, "demo/ann", fleet.edges[0].address) as ann:
        await ann.say("x", without_worker="never")
        assert (await ann.next("error"))["code"] == "MALFORMED_FRAME"
