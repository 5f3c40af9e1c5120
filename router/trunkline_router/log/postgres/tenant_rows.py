"""Writes and deletes tenants, API keys, revocations and audit records."""

from __future__ import annotations

from collections.abc import Sequence

from trunkline_router.core.values.stored_records import Registration, StoredTenant
from trunkline_router.log.postgres.fence import FencedWriter


async def write_registration(
    writer: FencedWriter, change: Registration, tenants: Sequence[StoredTenant]
) -> None:
    """Commit a change; `tenants` are its tenants with settings as stored."""
    raise NotImplementedError
