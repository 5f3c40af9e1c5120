"""Writes batches, each with one statement."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from trunkline_router.core.values.topics import TopicKey
from trunkline_router.log.append_results import StoredResult
from trunkline_router.log.batch import KEY_COLUMNS, Batch, Head
from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log.postgres.batch_statement import write_arguments
from trunkline_router.log.postgres.fence import FencedWriter
from trunkline_router.log.postgres.heads import look_up_heads
from trunkline_router.log.postgres.id_blocks import IdBlocks
from trunkline_router.log.postgres.idempotency_keys import look_up_results
from trunkline_router.log.postgres.key_store import KeyStore

_KEY = 1


class BatchWriter:
    """Implements BatchStore."""

    def __init__(self, writer: FencedWriter, key_store: KeyStore, ids: IdBlocks) -> None:
        """The counters of `ids` must be those that number the batches."""
        self._writer = writer
        self._key_store = key_store
        self._ids = ids

    async def heads(self, topics: Sequence[TopicKey]) -> list[Head]:
        """See BatchStore."""
        return await look_up_heads(self._writer, topics)

    async def results(self, keys: Sequence[bytes]) -> dict[bytes, StoredResult]:
        """See BatchStore."""
        return await look_up_results(self._writer, keys)

    async def commit(self, batch: Batch) -> dict[bytes, StoredResult]:
        """See BatchStore. Keys are not looked up first: one that is in use fails the statement."""
        await self._key_store.seal_batch(batch)
        ids = self._ids.missing()
        statement, parameters = write_arguments(batch, ids)
        try:
            result = await self._writer.write(*statement, *parameters)
        except LogUnavailable as error:
            if _is_key_in_use(error.__cause__):
                return await self.results(batch.keys[_KEY::KEY_COLUMNS])
            raise
        if ids is not None:
            self._ids.reserved(ids)
        if result is not None:
            found, cancelled = result
            batch.withdrawn_found.update(map(tuple, found or ()))
            batch.answered_cancelled.update(map(tuple, cancelled or ()))
        return {}


def _is_key_in_use(error: BaseException | None) -> bool:
    return isinstance(error, asyncpg.UniqueViolationError) and error.table_name == "idempotency"
