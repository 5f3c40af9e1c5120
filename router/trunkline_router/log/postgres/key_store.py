"""Commits the keys of tenants before they are used, and encrypts what is written."""

from __future__ import annotations

from collections.abc import Callable, Collection

from trunkline_router.core.values.stored_records import Registration, StoredTenant
from trunkline_router.log.batch import Batch
from trunkline_router.log.data_keys import DataKeys
from trunkline_router.log.encryption import Encryption
from trunkline_router.log.postgres.fence import FencedWriter


class KeyStore:
    """The keys of one log. Keys are committed by a write of their own, before the one that uses them."""

    def __init__(self, encryption: Encryption, writer: FencedWriter, now_ms: Callable[[], int]) -> None:
        self.encryption = encryption
        self._writer = writer
        self._now_ms = now_ms

    async def open(self) -> None:
        """Load all keys, wrap them by the current data key, and encrypt settings that are still plain.

        Raises DataKeyError if a data key is missing.
        """

    async def rewrap(self, data_keys: DataKeys) -> int:
        """Wrap all keys by the current one of these data keys. Returns the number of keys that were not."""
        raise NotImplementedError

    async def reserve(self, tenants: Collection[str], uses: int = 1) -> None:
        """Let each tenant's key encrypt so many values; writes only once in a million uses."""
        raise NotImplementedError

    async def seal_registration(self, change: Registration) -> list[StoredTenant]:
        """Return the tenants to write, with encrypted settings if there is a data key."""
        return change.tenants

    def registered(self, change: Registration) -> None:
        """The change is committed: follow its settings."""

    async def seal_batch(self, batch: Batch) -> None:
        """Encrypt the content in a batch of the tenants that want it."""
