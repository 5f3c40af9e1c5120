"""Logs of tenants with everything that a log can hold, and what a router reads from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trunkline.v1.tenant_pb2 import ClientAuth, TenantSettings
from trunkline_router.core.values.log_records import (
    Checkpoint,
    DeadLettered,
    DeliveredPosition,
    Fork,
    PageRequest,
    PendingEntry,
    Producer,
    Transaction,
    Withdrawal,
)
from trunkline_router.core.values.stored_records import (
    AuditQuery,
    AuditRecord,
    Registration,
    RevocationKind,
    StoredApiKey,
    StoredRevocation,
    StoredTenant,
)
from trunkline_router.core.values.topics import PERSON, TopicKey
from trunkline_router.log.data_keys import DataKeys
from trunkline_router.log.interface import Log
from trunkline_router.log.sqlite.engine import SqliteLog

from tests.router.log.engines import (
    HOUR_MS,
    NOW_MS,
    append,
    clock,
    deltas,
    edit,
    hashed_key,
    pending_entry,
    position,
    read,
    recall,
)


def open_log(path: Path, data_keys: DataKeys | None = None) -> SqliteLog:
    path.parent.mkdir(parents=True, exist_ok=True)
    return SqliteLog.open(path, data_keys=data_keys, clock=clock, keep_keys_ms=HOUR_MS)


def conversation(tenant: str, name: str = "alice") -> TopicKey:
    return (tenant, "echo", "web", PERSON, name)


def settings(tenant: str, *, encrypted: bool) -> bytes:
    auth = ClientAuth(token_digests=[f"{hash(tenant) & 0xFF:064x}"])
    return TenantSettings(
        client_auth=auth, pipelines=[f"pipe-{tenant}"], encrypt_messages=encrypted
    ).SerializeToString()


def keyed(tenant: str, number: int) -> PendingEntry:
    """A message with an idempotency key, the same whenever it is called."""
    key = hashed_key(number + sum(tenant.encode()) * 1000)
    return pending_entry(conversation(tenant), f"keyed {number}", key=key, digest=b"%8d" % number)


async def fill(log: Log, tenant: str, *, encrypted: bool = False) -> None:
    """Write a tenant, and a log with every kind of row."""
    topic = conversation(tenant)
    await log.register(
        Registration(
            [StoredTenant(tenant, 1, settings(tenant, encrypted=encrypted), NOW_MS, NOW_MS)],
            [StoredApiKey(f"key-{tenant}", tenant, "my\0key", b"d" * 32, (1, 3), NOW_MS)],
            [StoredRevocation(tenant, RevocationKind.USER, "mallory", NOW_MS, NOW_MS)],
            audit=[AuditRecord(NOW_MS, tenant, "operator", "here", "CreateTenant", "a\0b", "", "{}")],
        )
    )
    for number in range(3):
        await append(log, keyed(tenant, number))
    work = [pending_entry(topic, f"work {number}", deliver=True) for number in range(4)]
    await append(log, *work)
    ids = [each.delivery_id for each in work]
    await log.append(
        Transaction(dead_lettered=[DeadLettered(ids[1], 3, "bro\0ken"), DeadLettered(ids[3], 1, "")])
    )
    await append(log, edit(work[0]), recall(work[1]), read(topic, position(work[2]), "bob"))
    producer = Producer("worker", 7)
    [reply] = await append(log, pending_entry(conversation(tenant, "bob"), "", producer=producer))
    for text in ("one", "two", "three"):
        at = reply.message.position
        await log.append(Transaction(checkpoints=[Checkpoint(reply.topic, at.seq, producer, deltas(text))]))
    await log.append(
        Transaction(
            withdrawn=[Withdrawal(topic, work[2].message.position.seq)],
            delivered=[DeliveredPosition(topic, "carol", position(work[3]))],
        )
    )
    # A log with former epochs, and an erased one.
    old = conversation(tenant, "old")
    [first] = await append(log, pending_entry(old, "before", deliver=True))
    await log.append(
        Transaction([pending_entry(old, "after")], forks=[Fork(old, first.message.position.epoch)])
    )
    gone = conversation(tenant, "gone")
    await append(log, pending_entry(gone, "to be erased"))
    await log.reset(gone)


async def contents(log: Any, tenant: str, *, with_ids: bool = True) -> dict[str, Any]:
    """Everything that a router reads about a tenant."""
    names = ("alice", "bob", "old", "gone")
    topics = [conversation(tenant, name) for name in names]
    deliveries = await log.deliveries(tenant, "echo", 0, 100)
    letters = await log.dead_letters(tenant, "echo", 0, 100)
    if not with_ids:
        deliveries = [each._replace(delivery_id=0) for each in deliveries]
        letters = [each._replace(delivery_id=0) for each in letters]
    registered = await log.registered()
    audit = await log.audit(AuditQuery(tenant, "", 0, 0, 100))
    found: dict[str, Any] = {
        "pages": [await log.read([PageRequest(topic, 100)]) for topic in topics],
        "heads": await log.heads(topics),
        "receipts": [await log.receipts(topic, "", 100) for topic in topics],
        "delivered": await log.delivered([(topics[0], "carol"), (topics[0], "bob")]),
        "open": sorted(each for each in await log.open_messages() if each.topic[0] == tenant),
        "deliveries": deliveries,
        "letters": letters,
        "tenants": [each for each in registered.tenants if each.tenant == tenant],
        "api_keys": [each for each in registered.api_keys if each.tenant == tenant],
        "revocations": [each for each in registered.revocations if each.tenant == tenant],
        "audit": [record for _, record in audit],
    }
    message = found["pages"][0][0].entries[0]
    from trunkline.v1.message_pb2 import Message

    found["message"] = await log.message(tenant, Message.FromString(message.body).id)
    return found


async def results_of_repeats(log: Log, tenant: str) -> list[Any]:
    """Repeat the keyed messages. Returns their results."""
    entries = [keyed(tenant, number) for number in range(3)]
    await append(log, *entries)
    return [(each.result, each.message.id) for each in entries]
