"""Every write of a log that belongs to another router by now is refused, and changes nothing."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from trunkline.v1.tenant_pb2 import TenantSettings
from trunkline_router.core.values.log_records import (
    Attempts,
    Checkpoint,
    DeadLettered,
    DeliveredPosition,
    Fork,
    HistoryLimits,
    PendingEntry,
    Producer,
    Transaction,
    Withdrawal,
)
from trunkline_router.core.values.stored_records import (
    AuditRecord,
    Registration,
    RevocationKind,
    StoredApiKey,
    StoredRevocation,
    StoredTenant,
)
from trunkline_router.core.values.topics import GROUP, PERSON, TopicKey
from trunkline_router.log.data_keys import DataKeys, parse_data_keys
from trunkline_router.log.interface import LogFenced

from tests.router.log.engines import (
    ALICE,
    DATA_KEYS,
    HOUR_MS,
    NOW_MS,
    EveryTenant,
    a_key,
    append,
    clock,
    deltas,
    edit,
    end,
    pending_entry,
    position,
    read,
    recall,
)
from tests.router.log.postgres.stored_rows import stored_rows
from tests.support.postgres import shared_server

TEAM: TopicKey = ("acme", "echo", "web", GROUP, "team")
GONE: TopicKey = ("acme", "echo", "web", PERSON, "gone")
WORKER = Producer("worker", 1)
LATER_MS = NOW_MS + 10 * HOUR_MS


class FilledLog:
    """A log with rows of every kind."""

    def __init__(self, log: Any, schema: str) -> None:
        self.log = log
        self.schema = schema
        self.delivered: list[PendingEntry] = []
        self.reply: PendingEntry = pending_entry(TEAM, "a reply", producer=WORKER)

    async def fill(self) -> None:
        """Write the rows."""
        tenant = StoredTenant("acme", 1, TenantSettings(default_agent="echo").SerializeToString(), 5, 6)
        key = StoredApiKey("k1", "acme", "first", b"digest", (1,), 8)
        revocation = StoredRevocation("acme", RevocationKind.USER, "alice", 100, 101)
        record = AuditRecord(1, "acme", "operator", "local", "CreateTenant", "acme")
        await self.log.register(Registration([tenant], [key], [revocation], audit=[record]))
        self.delivered = await append(
            self.log, *(pending_entry(ALICE, f"{number}", key=a_key(), deliver=True) for number in range(6))
        )
        await append(self.log, pending_entry(TEAM, "of alice"), pending_entry(TEAM, "of bob", user="bob"))
        await append(self.log, self.reply, pending_entry(GONE))
        await append(self.log, read(TEAM, position(self.reply)), edit(self.delivered[4]))
        await self.log.append(
            Transaction(
                checkpoints=[Checkpoint(TEAM, self.reply.message.position.seq, WORKER, deltas("text"))],
                delivered=[DeliveredPosition(ALICE, "alice", position(self.delivered[0]))],
                dead_lettered=[DeadLettered(self.delivered[5].delivery_id, 3, "no use")],
                withdrawn=[Withdrawal(ALICE, self.delivered[4].message.position.seq)],
            )
        )
        # Its other rows are left to the sweep.
        await self.log.reset(GONE)

    def rows(self) -> dict[str, list[str]]:
        return stored_rows(shared_server(), self.schema)


Write = Callable[[FilledLog], Awaitable[object]]


def transaction(**parts: Callable[[FilledLog], Any]) -> Write:
    async def write(filled: FilledLog) -> None:
        await filled.log.append(Transaction(**{name: part(filled) for name, part in parts.items()}))

    return write


WRITES: dict[str, Write] = {
    "message": transaction(entries=lambda _: [pending_entry(ALICE)]),
    "message of a new topic": transaction(entries=lambda _: [pending_entry(("new", "a", "b", GROUP, "c"))]),
    "message with a key and a delivery": transaction(
        entries=lambda _: [pending_entry(ALICE, key=a_key(), deliver=True)]
    ),
    "open message": transaction(entries=lambda _: [pending_entry(ALICE, producer=WORKER)]),
    "edit": transaction(entries=lambda filled: [edit(filled.delivered[0])]),
    "recall": transaction(entries=lambda filled: [recall(filled.delivered[0])]),
    "end of a reply": transaction(entries=lambda filled: [end(filled.reply)]),
    "read": transaction(entries=lambda filled: [read(ALICE, position(filled.delivered[2]))]),
    "settlement": transaction(settled=lambda filled: [filled.delivered[0].delivery_id]),
    "attempts": transaction(attempts=lambda filled: [Attempts(filled.delivered[0].delivery_id, 2)]),
    "dead letter": transaction(
        dead_lettered=lambda filled: [DeadLettered(filled.delivered[0].delivery_id, 3, "no")]
    ),
    "withdrawal": transaction(
        withdrawn=lambda filled: [Withdrawal(ALICE, filled.delivered[1].message.position.seq)]
    ),
    "checkpoint": transaction(
        checkpoints=lambda filled: [
            Checkpoint(TEAM, filled.reply.message.position.seq, WORKER, deltas("more"))
        ]
    ),
    "takeover of a reply": transaction(
        checkpoints=lambda filled: [Checkpoint(TEAM, filled.reply.message.position.seq, Producer("other", 2))]
    ),
    "receipt": transaction(
        delivered=lambda filled: [DeliveredPosition(ALICE, "alice", position(filled.delivered[3]))]
    ),
    "fork": transaction(forks=lambda filled: [Fork(ALICE, filled.delivered[0].message.position.epoch)]),
    "reset": lambda filled: filled.log.reset(ALICE),
    "erasure of a tenant": lambda filled: filled.log.erase_tenant("acme"),
    "erasure of a user": lambda filled: filled.log.erase_user("acme", "bob", None),
    "erasure of a user's logs": lambda filled: filled.log.erase_user("acme", "alice", None),
    "pruning": lambda filled: filled.log.prune("acme", HistoryLimits(max_age_ms=HOUR_MS), None, LATER_MS),
    "sweep": lambda filled: filled.log.sweep(LATER_MS),
    "replay": lambda filled: filled.log.replay("acme", "echo", [filled.delivered[5].delivery_id]),
    "tenant": lambda filled: filled.log.register(Registration([StoredTenant("new", 1, b"", 5, 6)])),
    "API keys": lambda filled: filled.log.register(
        Registration(api_keys=[StoredApiKey("k2", "acme", "", b"", (), 9)], keys_gone=["k1"])
    ),
    "use of a key": lambda filled: filled.log.register(Registration(keys_used=[("k1", 50)])),
    "revocations": lambda filled: filled.log.register(
        Registration(
            revocations=[StoredRevocation("acme", RevocationKind.ALL, "", 100, 101)], revoked_before_ms=200
        )
    ),
    "audit": lambda filled: filled.log.register(Registration(audited_before_ms=NOW_MS)),
    "data keys": lambda filled: filled.log.use_data_keys(_rotated_data_keys()),
}


def _rotated_data_keys() -> DataKeys:
    second = parse_data_keys([base64.b64encode(bytes(range(32, 64))).decode()], "TRUNKLINE_DATA_KEY")
    return DataKeys((*second.keys, *DATA_KEYS.keys), DATA_KEYS.source)


@pytest.fixture
async def filled() -> AsyncIterator[FilledLog]:
    from trunkline_router.log.postgres.database import PostgresDatabase

    dsn = shared_server().fresh_schema()
    database = PostgresDatabase(dsn, data_keys=lambda: DATA_KEYS, clock=clock, keep_keys_ms=HOUR_MS)
    log: Any
    log, lease = await database.acquire(lambda: None)
    log._encryption.encrypted_tenants = EveryTenant()
    filled = FilledLog(log, dsn.partition("search_path=")[2])
    await filled.fill()
    yield filled
    await log.close()
    await lease.release()
    await database.close()


@pytest.mark.parametrize("name", WRITES)
async def test_a_log_that_another_router_owns_writes_nothing(filled: FilledLog, name: str) -> None:
    shared_server().execute(f"UPDATE {filled.schema}.routers SET alive = false")
    before = filled.rows()
    with pytest.raises(LogFenced):
        await WRITES[name](filled)
    assert filled.rows() == before


@pytest.mark.parametrize("name", WRITES)
async def test_the_same_writes_change_rows_of_an_owned_log(filled: FilledLog, name: str) -> None:
    before = filled.rows()
    await WRITES[name](filled)
    after = filled.rows()
    changed = {table for table in before.keys() | after.keys() if before.get(table) != after.get(table)}
    assert changed - {"commits"}
