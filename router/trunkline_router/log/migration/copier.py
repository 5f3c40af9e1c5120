"""Copies a log, or tenants of one, in pieces; verifies the copy; continues after it was interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import NamedTuple

from trunkline_router.log.data_keys import DataKeys
from trunkline_router.log.encryption import Encryption
from trunkline_router.log.migration.copied_log import (
    CopiedLog,
    CopyDiffers,
    CopyFailed,
    HighestIds,
    Piece,
    RowKey,
)
from trunkline_router.log.migration.copied_tables import (
    AUDIT,
    DEAD_LETTERS,
    DELIVERIES,
    IDEMPOTENCY,
    TABLES,
    TENANT_KEYS,
    CopiedTable,
    Row,
    tables_of,
)
from trunkline_router.log.migration.copied_tenants import CopiedTenants
from trunkline_router.log.migration.copy_state import CopyState, IdBases
from trunkline_router.log.migration.renumbering import Renumbering, count_damaged, with_checksums
from trunkline_router.log.migration.row_digest import RowDigest

#: Called with the rows copied and verified so far, and with what they will be.
Progress = Callable[[int, int], None]


class CopiedRows(NamedTuple):
    """Rows of one table."""

    table: str
    rows: int
    #: Equal on both sides.
    digest: str


@dataclass(slots=True)
class CopyReport:
    """Result of a copy."""

    source: str
    target: str
    tables: list[CopiedRows] = field(default_factory=list)
    #: Ids of the data keys that routers need to open the copy.
    data_keys: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Copier:
    """Copies from one log to another. Nobody else may use either of them meanwhile."""

    def __init__(
        self, source: CopiedLog, target: CopiedLog, data_keys: DataKeys | None, progress: Progress
    ) -> None:
        self._source = source
        self._target = target
        self._tenants = CopiedTenants(source, target, data_keys)
        self._encryption = Encryption(data_keys)
        self._has_data_keys = data_keys is not None
        self._progress = progress
        self._rows_done = self._rows_expected = 0
        self._report = CopyReport(source.describe(), target.describe())

    async def copy(self, tenants: list[str] | None) -> CopyReport:
        """Copy the whole log, or these tenants, and verify the copy. Raises CopyFailed, and DataKeyError.

        Continues where an interrupted call ended, unless the source was written to since.
        """
        state = await self._begin(tenants)
        if not state.is_complete:
            if tenants is None:
                await self._copy_part(state, None)
            while (tenant := state.tenant) is not None:
                await self._copy_part(state, tenant)
            state.is_complete = True
            await self._target.finish(await self._ids(state), state.dumps(), is_complete=True)
        self._report.data_keys = await self._tenants.data_key_ids()
        for table in TABLES:
            if (total := state.totals.get(table.name)) is not None:
                self._report.tables.append(CopiedRows(table.name, total.rows, total.hexdigest()))
        return self._report

    async def discard(self) -> bool:
        """Delete what an unfinished copy left in the target. Returns whether there was one."""
        text = await self._target.load_state()
        if text is None or (state := _parse(text)).is_complete:
            return False
        await self._delete(state)
        await self._target.forget()
        return True

    # Begin

    async def _begin(self, tenants: list[str] | None) -> CopyState:
        version = await self._source.version()
        text = await self._target.load_state()
        state = _parse(text) if text is not None else None
        if state is not None and state.is_complete:
            if (state.source, state.tenants) == (version, tenants):
                # The run before was killed at its end.
                self._report.warnings.append("the copy was complete already")
                return state
        elif state is not None:
            unfinished = f"{self._target.describe()} holds an unfinished copy"
            if state.source.log != version.log:
                raise CopyFailed(f"{unfinished} of another log: complete it, or delete it with --discard")
            if state.tenants != tenants:
                named = f"tenants {', '.join(state.tenants)}" if state.tenants else "the whole log"
                raise CopyFailed(f"{unfinished} of {named}: complete it, or delete it with --discard")
            if state.source == version:
                await self._tenants.load_keys(self._encryption, tenants, needs_keys=not state.keeps_ids)
                return state
            self._report.warnings.append("the source was written to since the copy began: it began again")
            await self._delete(state)
        keeps_ids = await self._is_empty()
        if tenants is None and not keeps_ids:
            raise CopyFailed(
                f"{self._target.describe()} is not empty: name the tenants to add to it with --tenant, or"
                " copy to a new database"
            )
        await self._tenants.load_keys(self._encryption, tenants, needs_keys=not keeps_ids)
        if tenants is not None:
            await self._tenants.check(tenants)
        audit_id = 0 if keeps_ids else (await self._target.highest_ids()).audit
        log_key = await self._tenants.highest_log_key()
        state = CopyState(version, tenants, keeps_ids, audit_id=audit_id, log_key=log_key)
        await self._target.begin(state.dumps())
        return state

    async def _is_empty(self) -> bool:
        for table in TABLES:
            async with aclosing(self._target.pieces(table, None, None)) as pieces:
                async for _ in pieces:
                    return False
        return True

    async def _delete(self, state: CopyState) -> None:
        for tenant in [None] if state.tenants is None else state.tenants:
            await self._target.delete(tenant, state.audit_id, state.log_key)

    # Copy

    async def _copy_part(self, state: CopyState, tenant: str | None) -> None:
        """Copy and verify the whole log, or one tenant."""
        if tenant is not None and state.bases is None:
            state.bases = IdBases() if state.keeps_ids else await self._new_bases()
        tables = tables_of(tenant)
        await self._expect(state, tables, tenant)
        for table in tables:
            if not state.progress(table).is_done:
                await self._copy_table(state, table, tenant)
        if await self._source.version() != state.source:
            raise CopyFailed(f"{self._source.describe()} was written to meanwhile: run the command again")
        for table in tables:
            await self._verify(state, table, tenant)
        await self._complete(state, tables, tenant)

    async def _expect(self, state: CopyState, tables: list[CopiedTable], tenant: str | None) -> None:
        for table in tables:
            # Each row is copied and verified.
            self._rows_expected += 2 * await self._source.count(table, tenant)
            self._rows_done += state.progress(table).digest.rows
        self._progress(self._rows_done, self._rows_expected)

    async def _copy_table(self, state: CopyState, table: CopiedTable, tenant: str | None) -> None:
        progress = state.progress(table)
        renumbering = None
        if tenant is not None and not state.keeps_ids:
            assert state.bases is not None
            renumbering = Renumbering(tenant, state.bases, self._encryption)
            before = state.progress(DEAD_LETTERS).digest.rows if table is DELIVERIES else 0
        if tenant is not None and progress.last is None:
            if table is IDEMPOTENCY:
                await self._target.delete_keys(tenant)
            elif table is TENANT_KEYS:
                await self._copy_keys(state, tenant)
                return
        async for piece in _ahead(self._source.pieces(table, tenant, progress.last)):
            rows = with_checksums(table, piece.rows)
            progress.damaged += count_damaged(table, rows)
            if renumbering is not None:
                rows = renumbering.apply(table, rows, before + progress.digest.rows)
            progress.digest.add(rows)
            progress.last = piece.last
            await self._target.write(table, rows, state.dumps())
            self._advance(len(rows))
        progress.is_done = True
        await self._target.write(table, [], state.dumps())
        if progress.damaged:
            self._report.warnings.append(
                f"{progress.damaged} entries in {table.name} were damaged before, and still are: see"
                " `trunkline-router check`"
            )

    async def _copy_keys(self, state: CopyState, tenant: str) -> None:
        """Copy the keys of a tenant, and what belongs to them."""
        progress = state.progress(TENANT_KEYS)
        rows: list[Row] = await self._tenants.keys(tenant, is_sealed_again=not state.keeps_ids)
        progress.digest.add(rows)
        progress.is_done = True
        log_keys = await self._tenants.log_keys(self._encryption)
        await self._target.write(TENANT_KEYS, rows + log_keys, state.dumps())
        await self._tenants.load_new_key(self._encryption, rows)
        self._advance(len(rows))

    async def _verify(self, state: CopyState, table: CopiedTable, tenant: str | None) -> None:
        """Read a table of the copy and compare it with what was written. Raises CopyDiffers."""
        written = state.progress(table).digest
        found = RowDigest(table)
        after: RowKey | None = None
        if table is AUDIT and state.bases is not None and state.bases.audit:
            after = (state.bases.audit,)
        async for piece in _ahead(self._target.pieces(table, tenant, after)):
            found.add(piece.rows)
            self._advance(len(piece.rows))
        if (found.rows, found.hexdigest()) != (written.rows, written.hexdigest()):
            raise CopyDiffers(
                f"the copy of {table.name} differs: it has {found.rows} rows, and {written.rows} were copied."
                " Delete it with --discard, and copy again"
            )

    async def _complete(self, state: CopyState, tables: list[CopiedTable], tenant: str | None) -> None:
        ids = await self._ids(state)
        for table in tables:
            digest = state.progress(table).digest
            state.totals.setdefault(table.name, RowDigest(table)).merge(digest)
        if tenant is not None:
            state.done.append(tenant)
            state.bases = None
        state.tables = {}
        await self._target.finish(ids, state.dumps(), is_complete=False)

    # Ids

    async def _new_bases(self) -> IdBases:
        source, target = await self._source.highest_ids(), await self._target.highest_ids()
        # Above both: an id that a worker or an operator has seen never means another message.
        return IdBases(target.topic, max(source.delivery, target.delivery), target.audit)

    async def _ids(self, state: CopyState) -> HighestIds:
        """Return the ids that the target has reached."""
        source, target = await self._source.highest_ids(), await self._target.highest_ids()
        if state.bases is None or state.keeps_ids:
            if state.tenants is not None and not state.keeps_ids:
                return target
            return HighestIds(*map(max, source, target))
        deliveries = state.progress(DEAD_LETTERS).digest.rows + state.progress(DELIVERIES).digest.rows
        return HighestIds(
            state.bases.topic + source.topic,
            max(target.delivery, state.bases.delivery + deliveries),
            state.bases.audit + state.progress(AUDIT).digest.rows,
        )

    def _advance(self, rows: int) -> None:
        self._rows_done += rows
        self._progress(self._rows_done, max(self._rows_expected, self._rows_done))


async def _ahead(pieces: AsyncGenerator[Piece]) -> AsyncGenerator[Piece]:
    """Read the next piece while the caller handles one."""
    following = asyncio.ensure_future(anext(pieces, None))
    try:
        while (piece := await following) is not None:
            following = asyncio.ensure_future(anext(pieces, None))
            yield piece
    finally:
        if not following.done():
            following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await pieces.aclose()


def _parse(text: str) -> CopyState:
    try:
        return CopyState.loads(text, TABLES)
    except (KeyError, TypeError, ValueError):
        raise CopyFailed(
            "another version of Trunkline began the copy: complete it with that one, or delete it with"
            " --discard"
        ) from None
