"""Writes batches, each with one statement."""

from __future__ import annotations

from collections.abc import Sequence

from trunkline_router.core.values.topics import TopicKey
from trunkline_router.log.append_results import StoredResult
from trunkline_router.log.batch import Batch, Head
from trunkline_router.log.postgres.fence import FencedWriter
from trunkline_router.log.postgres.key_store import KeyStore


class BatchWriter:
    """Implements BatchStore."""

    def __init__(self, writer: FencedWriter, key_store: KeyStore) -> None:
        self._writer = writer
        self._key_store = key_store

    async def heads(self, topics: Sequence[TopicKey]) -> list[Head]:
        """See BatchStore."""
        raise NotImplementedError

    async def results(self, keys: Sequence[bytes]) -> dict[bytes, StoredResult]:
        """See BatchStore."""
        raise NotImplementedError

    async def commit(self, batch: Batch) -> dict[bytes, StoredResult]:
        """See BatchStore."""
        raise NotImplementedError
