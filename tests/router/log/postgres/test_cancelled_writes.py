"""Writes whose caller gave up are committed all the same: the keys in memory follow those in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import pytest

from tests.router.log.engines import append, pending_entry
from tests.router.log.sealed_storage import TEXT, Schema, tenant, texts
from tests.router.log.test_encryption import data_keys
from tests.router.log.whole_erasures import erase_tenant


@pytest.fixture
def schema(postgres_schema: str) -> Schema:
    return Schema(postgres_schema)


async def cancel(log: Any, operation: Coroutine[Any, Any, object]) -> None:
    """Cancel an operation when its statement is committed, before it learns of that."""
    committed, may_go_on = asyncio.Event(), asyncio.Event()
    write = log._writer.write

    async def slow_write(*args: object) -> Any:
        result = await write(*args)
        committed.set()
        await may_go_on.wait()
        return result

    log._writer.write = slow_write
    task = asyncio.create_task(operation)
    await committed.wait()
    log._writer.write = write
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    may_go_on.set()


async def test_messages_are_encrypted_after_a_cancelled_registration(schema: Schema) -> None:
    log = await schema.open(data_keys(1))
    await log.register(tenant(encrypted=False))
    await cancel(log, log.register(tenant()))
    await append(log, pending_entry(text=TEXT))
    assert await schema.holds(TEXT) == []
    await log.close()


async def test_a_tenant_whose_erasure_was_cancelled_gets_a_new_key(schema: Schema) -> None:
    log = await schema.open(data_keys(1))
    await log.register(tenant())
    await cancel(log, erase_tenant(log))
    assert (await log.registered()).tenants == []
    await log.register(tenant())
    await append(log, pending_entry(text=TEXT))
    await log.close()
    log = await schema.open(data_keys(1))
    assert await texts(log) == [TEXT]
    await log.close()


async def test_a_cancelled_rotation_of_data_keys_is_complete(schema: Schema) -> None:
    log = await schema.open(data_keys(1))
    await log.register(tenant())
    await cancel(log, log.use_data_keys(data_keys(2, 1)))
    await log.register(tenant("new"))
    await log.close()
    log = await schema.open(data_keys(2))
    assert len((await log.registered()).tenants) == 2
    await log.close()
