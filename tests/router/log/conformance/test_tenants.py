"""Guarantees of every log engine: tenants, API keys and revocations."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline.v1.tenant_pb2 import TenantSettings
from trunkline_router.core.values.stored_records import (
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
