"""Guarantees of every log engine: tenants, API keys, revocations and the audit trail."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline.v1.tenant_pb2 import TenantSettings
from trunkline_router.core.values.stored_records import (
    AuditQuery,
    AuditRecord,
    Registered,
    Registration,
    RevocationKind,
    StoredApiKey,
    StoredRevocation,
    StoredTenant,
)
from trunkline_router.log.interface import Log

from tests.router.log.engines import OTHER_TENANT, Opener, append, pending_entry
from tests.router.log.whole_erasures import erase_tenant

SETTINGS = TenantSettings(default_agent="echo é\0", pipelines=["", "\x1f"]).SerializeToString()
ACME = StoredTenant("acme", 1, SETTINGS, 5, 6)
EVIL = StoredTenant('evil é"', 2, b"", 7, 7)
KEY = StoredApiKey("k1", "acme", "the 'first'", b"\0\xff" * 16, (1, 3), 8)
OTHER_KEY = StoredApiKey("k2", EVIL.tenant, "", b"", (), 9, 10)
USER = StoredRevocation("acme", RevocationKind.USER, "alice", 100, 101)
TOKEN = StoredRevocation("acme", RevocationKind.TOKEN_ID, "alice", 0, 102)
ALL = StoredRevocation(EVIL.tenant, RevocationKind.ALL, "", 103, 104)


async def everything(log: Any) -> Registered:
    await log.register(Registration([EVIL, ACME], [KEY, OTHER_KEY], [TOKEN, USER, ALL]))
    return Registered([ACME, EVIL], [KEY, OTHER_KEY], [USER, TOKEN, ALL])


async def test_everything_registered_is_read_back(any_log: Any) -> None:
    assert await any_log.registered() == Registered()
    assert await everything(any_log) == await any_log.registered()
    await any_log.register(Registration())
    found = await any_log.registered()
    assert found == Registered([ACME, EVIL], [KEY, OTHER_KEY], [USER, TOKEN, ALL])
    assert isinstance(found.revocations[0].kind, RevocationKind)


async def test_names_of_keys_and_tokens_are_any_text(any_log: Any) -> None:
    names = ["", "\0", "a\0b", "\x10", "\x100", "\x101", "\\0", "\x1f\x7f\u2028", '{"é":1}']
    keys = [KEY._replace(key_id=f"k{number}", name=name) for number, name in enumerate(names)]
    tokens = [TOKEN._replace(name=name) for name in names]
    await any_log.register(Registration([ACME], keys, tokens))
    for _ in range(2):
        found = await any_log.registered()
        assert found.api_keys == keys
        assert sorted(found.revocations) == sorted(tokens)
        # They replace those of the same name.
        await any_log.register(Registration([], keys, tokens))


async def test_registrations_survive_a_restart(log: Log, opener: Opener) -> None:
    expected = await everything(log)
    await log.close()
    again = await opener()
    try:
        assert await again.registered() == expected
    finally:
        await again.close()


async def test_a_registration_replaces_rows_of_the_same_name(any_log: Any) -> None:
    await everything(any_log)
    tenant = ACME._replace(
        state=3, settings=TenantSettings(default_agent="new").SerializeToString(), updated_ms=9
    )
    key = KEY._replace(name="renamed", used_ms=11)
    revocation = USER._replace(issued_before_ms=200)
    await any_log.register(Registration([tenant], [key], [revocation]))
    assert await any_log.registered() == Registered(
        [tenant, EVIL], [key, OTHER_KEY], [revocation, TOKEN, ALL]
    )


async def test_keys_are_removed_and_their_use_is_recorded(any_log: Any) -> None:
    await everything(any_log)
    await any_log.register(
        Registration(keys_gone=["k2", "never there"], keys_used=[("k1", 50), ("k2", 51), ("never there", 52)])
    )
    assert (await any_log.registered()).api_keys == [KEY._replace(used_ms=50)]


@pytest.mark.parametrize(("before_ms", "left"), [(0, 3), (101, 3), (102, 2), (105, 0)])
async def test_old_revocations_are_deleted(any_log: Any, before_ms: int, left: int) -> None:
    expected = await everything(any_log)
    await any_log.register(Registration(revoked_before_ms=before_ms))
    assert (await any_log.registered()).revocations == expected.revocations[3 - left :]


async def test_erasing_a_tenant_deletes_its_registrations(any_log: Any) -> None:
    await everything(any_log)
    await append(any_log, pending_entry(), pending_entry(OTHER_TENANT))
    assert (await erase_tenant(any_log)).messages == 1
    assert await any_log.registered() == Registered([EVIL], [OTHER_KEY], [ALL])
    # A tenant without logs, too.
    assert (await erase_tenant(any_log, EVIL.tenant)).messages == 0
    assert await any_log.registered() == Registered()


def audit_record(at_ms: int, tenant: str = "acme", action: str = "RevokeTokens") -> AuditRecord:
    return AuditRecord(at_ms, tenant, 'key:"1"', "::1 via edge ::1", action, "é\0", "", '{"user":"é"}')


async def audited(
    log: Any, tenant: str = "", action: str = "", since_ms: int = 0, before_id: int = 0, limit: int = 9
) -> list[int]:
    """Return the times of the records that a query selects."""
    found = await log.audit(AuditQuery(tenant, action, since_ms, before_id, limit))
    return [record.at_ms for _, record in found]


async def test_audit_records_are_read_newest_first_as_they_were_written(any_log: Any) -> None:
    records = [audit_record(1), audit_record(2, "evil"), audit_record(3, "", "EraseUser:refused")]
    await any_log.register(Registration([ACME], audit=records[:2]))
    await any_log.register(Registration(audit=records[2:]))
    found = await any_log.audit(AuditQuery("", "", 0, 0, 9))
    assert [record for _, record in found] == records[::-1]
    ids = [number for number, _ in found]
    assert ids == sorted(ids, reverse=True)
    assert await audited(any_log, limit=2) == [3, 2]
    assert await audited(any_log, before_id=ids[1]) == [1]
    assert await audited(any_log, tenant="evil") == [2]
    assert await audited(any_log, action="EraseUser") == [3]
    assert await audited(any_log, action="RevokeTokens", since_ms=2) == [2]


async def test_audit_records_outlive_their_tenant_and_a_restart(log: Log, opener: Opener) -> None:
    await log.register(Registration([ACME], audit=[audit_record(1)]))
    await erase_tenant(log)
    await log.close()
    again = await opener()
    try:
        assert await audited(again, tenant="acme") == [1]
        await again.register(Registration(audit=[audit_record(2)]))
        assert await audited(again, tenant="acme") == [2, 1]
    finally:
        await again.close()


async def test_audit_records_expire_oldest_first(any_log: Any) -> None:
    await any_log.register(Registration(audit=[audit_record(at_ms) for at_ms in (1, 2, 3)]))
    await any_log.register(Registration())
    assert await audited(any_log) == [3, 2, 1]
    await any_log.register(Registration(audited_before_ms=3))
    assert await audited(any_log) == [3]
