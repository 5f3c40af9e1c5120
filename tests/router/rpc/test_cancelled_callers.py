"""A caller that vanishes during a change leaves the log and the core agreeing on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs
from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import AttachHello
from trunkline.v1.message_pb2 import ROLE_USER, Message
from trunkline.v1.tenant_pb2 import TENANT_STATE_SUSPENDED, TenantSettings
from trunkline_router.core.agents.worker import AttachedWorker
from trunkline_router.core.values.log_records import DeadLettered, PendingEntry, Transaction
from trunkline_router.core.values.stored_records import RevocationKind
from trunkline_router.core.values.topics import PERSON, TopicKey, address_of
from trunkline_router.log.interface import LogUnavailable
from trunkline_router.rpc.open_message_rpcs import PendingOpen

from tests.router.rpc.call_pacing import until
from tests.router.rpc.in_process_router import InProcessRouter

ALICE: TopicKey = ("open", "a", "web", PERSON, "alice")


class Scene:
    """A router whose tenant `open` has an API key, an open message, a dead letter and a worker."""

    def __init__(self, router: InProcessRouter) -> None:
        self.router = router
        self.admin = router.admin
        self.log = router.runtime.log
        self.key_id = ""
        self.dead_letter = 0
        self.worker: AttachedWorker | None = None

    async def set(self) -> None:
        runtime = self.router.runtime
        self.key_id, _ = await self.router.key("open")
        entry = PendingEntry(ALICE, Message(address=address_of(ALICE)), deliver=True)
        entry.message.author.role, entry.message.author.user = ROLE_USER, "alice"
        await self.log.append(Transaction(entries=[entry]))
        assert entry.delivery_id
        self.dead_letter = entry.delivery_id
        await self.log.append(Transaction(dead_lettered=[DeadLettered(self.dead_letter, 1, "no")]))
        opening = PendingOpen(15)
        with runtime.step() as core:
            core.message_opener.open(
                ALICE,
                Message(address=address_of(ALICE)),
                scope="",
                key="k",
                producer="p",
                listener=opening,
                now=time.monotonic(),
            )
        await opening.result
        hello = AttachHello(tenant="open", agents=["a"], capacity=9, contract_minor=catalogue.CONTRACT_MINOR)
        with runtime.step() as core:
            self.worker = core.worker_attached(hello, time.monotonic())
            core.worker_welcomed(self.worker)
        # The read of its deliveries.
        queue = runtime.core.agent_queues.get("open", "a")
        assert queue is not None
        await until(lambda: queue.is_complete)

    async def on_disk(self) -> dict[str, Any]:
        """The state in the log."""
        stored = await self.log.registered()
        return {
            "tenants": {each.tenant: (each.state, each.settings) for each in stored.tenants},
            "keys": {each.key_id for each in stored.api_keys},
            "revocations": {(each.tenant, each.kind, each.name) for each in stored.revocations},
            "open messages": len(await self.log.open_messages()),
            "deliveries": {each.delivery_id for each in await self.log.deliveries("open", "a", 0, 9)},
        }

    def in_core(self) -> dict[str, Any]:
        """The state in the core."""
        core = self.router.runtime.core
        tenants = core.directory.tenants
        queue = core.agent_queues.get("open", "a")
        return {
            "tenants": {
                name: (each.state, each.settings.SerializeToString(deterministic=True))
                for name, each in tenants.items()
            },
            "keys": {key.key_id for name in tenants for key in core.api_keys.of_tenant(name)},
            "revocations": {
                (name, each.kind, each.name)
                for name, tenant in tenants.items()
                for each in tenant.revocations.page((0, ""), 9)
            },
            "open messages": core.open_messages.count("open"),
            "deliveries": set(queue.held) if queue else set(),
        }

    # Changes

    async def reset(self) -> None:
        core, log = self.router.runtime.core, self.log
        await self.router.runtime.write(lambda: log.reset(ALICE), lambda _: core.topic_erased(ALICE))

    async def replay(self) -> None:
        core, log = self.router.runtime.core, self.log
        await self.router.runtime.write(
            lambda: log.replay("open", "a", [self.dead_letter]), core.dispatcher.replayed
        )

    async def create(self) -> None:
        await self.admin.create("new", TenantSettings())

    async def update(self) -> None:
        await self.admin.update("open", TenantSettings(default_agent="b"), ["default_agent"])

    async def ensure(self) -> None:
        await self.admin.ensure({"open": TenantSettings(), "new": TenantSettings()}, "tests")

    async def suspend(self) -> None:
        await self.admin.set_state("open", TENANT_STATE_SUSPENDED)

    async def delete(self) -> None:
        await self.admin.delete("open")

    async def create_key(self) -> None:
        await self.admin.create_key("open", "", [])

    async def revoke_key(self) -> None:
        await self.admin.revoke_key("open", self.key_id)

    async def revoke_tokens(self) -> None:
        await self.admin.revoke_tokens("open", RevocationKind.USER, "alice", None)

    async def erase_user(self) -> None:
        await self.admin.erase_user("open", "alice")


CHANGES: list[Callable[[Scene], Awaitable[None]]] = [
    Scene.reset,
    Scene.replay,
    Scene.create,
    Scene.update,
    Scene.ensure,
    Scene.suspend,
    Scene.delete,
    Scene.create_key,
    Scene.revoke_key,
    Scene.revoke_tokens,
    Scene.erase_user,
]


async def cancelled(change: Awaitable[None], turns: int = 1) -> None:
    """Cancel the change after this many turns of the event loop."""
    task = asyncio.ensure_future(change)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_log_and_core_agree_after_a_cancelled_change(
    router: InProcessRouter, change: Callable[[Scene], Awaitable[None]]
) -> None:
    scene = Scene(router)
    await scene.set()
    before = await scene.on_disk()
    assert scene.in_core() == before
    await cancelled(change(scene))
    await router.runtime.flush()
    after = await scene.on_disk()
    assert scene.in_core() == after
    assert after != before or change is Scene.erase_user


async def test_a_deletion_cancelled_during_its_last_step_ends_in_the_core_too(
    router: InProcessRouter,
) -> None:
    scene = Scene(router)
    await scene.set()
    await cancelled(scene.delete())
    await router.runtime.flush()
    await cancelled(scene.admin.finish_deletion("open"))
    await router.runtime.flush()
    assert scene.in_core() == await scene.on_disk()
    assert "open" not in scene.in_core()["tenants"]


async def test_a_change_cancelled_while_it_waits_for_another_does_nothing(router: InProcessRouter) -> None:
    scene = Scene(router)
    await scene.set()
    first = asyncio.ensure_future(scene.suspend())
    await asyncio.sleep(0)
    await cancelled(scene.create())
    await first
    assert scene.in_core() == await scene.on_disk()
    assert "new" not in scene.in_core()["tenants"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("a bug"), "a write failed after its caller had gone"),
        (LogUnavailable("disk full"), "log rejects writes; callers get LOG_UNAVAILABLE"),
    ],
)
async def test_the_failure_of_an_abandoned_change_is_logged(
    router: InProcessRouter, error: Exception, line: str
) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise error

    with capture_logs() as logs:
        await cancelled(router.runtime.write(fail))
        await router.runtime.flush()
        await asyncio.sleep(0)
    assert [each["event"] for each in logs] == [line]
