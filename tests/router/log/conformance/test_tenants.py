"""What every engine of the log promises of tenants, API keys and revocations."""

from __future__ import annotations

from typing import Any

import pytest
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

ACME = StoredTenant("acme", 1, b"\0settings\xff", 5, 6)
EVIL = StoredTenant('evil é"', 2, b"", 7, 7)
KEY = StoredApiKey("k1", "acme", "the 'first'", b"\0\xff" * 16, (1, 3), 8)
OTHER_KEY = StoredApiKey("k2", EVIL.tenant, "", b"", (), 9, 10)
USER = StoredRevocation("acme", RevocationKind.USER, "alice", 100, 101)
TOKEN = StoredRevocation("acme", RevocationKind.TOKEN_ID, "alice", 0, 102)
ALL = StoredRevocation(EVIL.tenant, RevocationKind.ALL, "", 103, 104)


async def everything(log: Any) -> Registered:
    await log.register(Registration([EVIL, ACME], [KEY, OTHER_KEY], [TOKEN, USER, ALL]))
    return Registered([ACME, EVIL], [KEY, OTHER_KEY], [USER, TOKEN, ALL])


async def test_what_is_registered_is_all_there_is(any_log: Any) -> None:
    assert await any_log.registered() == Registered()
    assert await everything(any_log) == await any_log.registered()
    await any_log.register(Registration())
    found = await any_log.registered()
    assert found == Registered([ACME, EVIL], [KEY, OTHER_KEY], [USER, TOKEN, ALL])
    assert isinstance(found.revocations[0].kind, RevocationKind)


async def test_what_is_registered_survives_a_restart(log: Log, opener: Opener) -> None:
    expected = await everything(log)
    await log.close()
    again = await opener()
    try:
        assert await again.registered() == expected
    finally:
        await again.close()


async def test_rows_of_the_same_name_take_the_places_of_those_before(any_log: Any) -> None:
    await everything(any_log)
    tenant = ACME._replace(state=3, settings=b"new", updated_ms=9)
    key = KEY._replace(name="renamed", used_ms=11)
    revocation = USER._replace(issued_before_ms=200)
    await any_log.register(Registration([tenant], [key], [revocation]))
    assert await any_log.registered() == Registered(
        [tenant, EVIL], [key, OTHER_KEY], [revocation, TOKEN, ALL]
    )


async def test_keys_go_and_are_used_and_those_that_are_gone_stay_so(any_log: Any) -> None:
    await everything(any_log)
    await any_log.register(
        Registration(keys_gone=["k2", "never there"], keys_used=[("k1", 50), ("k2", 51), ("never there", 52)])
    )
    assert (await any_log.registered()).api_keys == [KEY._replace(used_ms=50)]


@pytest.mark.parametrize(("before_ms", "left"), [(0, 3), (101, 3), (102, 2), (105, 0)])
async def test_old_revocations_are_forgotten(any_log: Any, before_ms: int, left: int) -> None:
    expected = await everything(any_log)
    await any_log.register(Registration(revoked_before_ms=before_ms))
    assert (await any_log.registered()).revocations == expected.revocations[3 - left :]


async def test_a_tenant_that_is_erased_is_gone_with_all_that_is_registered_for_it(any_log: Any) -> None:
    await everything(any_log)
    await append(any_log, pending_entry(), pending_entry(OTHER_TENANT))
    assert (await erase_tenant(any_log)).messages == 1
    assert await any_log.registered() == Registered([EVIL], [OTHER_KEY], [ALL])
    # Also one that has nothing else.
    assert (await erase_tenant(any_log, EVIL.tenant)).messages == 0
    assert await any_log.registered() == Registered()
