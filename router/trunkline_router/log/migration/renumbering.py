"""Gives the rows of a tenant ids that are free in the log that they join."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from trunkline_router.log.encryption import CannotDecrypt, Encryption, SealedTable, is_sealed
from trunkline_router.log.migration.copied_tables import (
    AUDIT,
    DEAD_LETTERS,
    DELIVERIES,
    EVENTS,
    IDEMPOTENCY,
    MESSAGES,
    OPEN_DELTAS,
    CopiedTable,
    Row,
)
from trunkline_router.log.migration.copy_state import IdBases
from trunkline_router.log.stored_entries import checksum, is_intact, is_readable

_ENTRIES = {MESSAGES.name: SealedTable.MESSAGES, EVENTS.name: SealedTable.EVENTS}
#: Turns the checksum of an entry into a wrong one.
_WRONG = 0xFFFFFFFF


def with_checksums(table: CopiedTable, rows: list[Row]) -> list[Row]:
    """Give entries of old versions, which have no checksum, the one that they should have.

    One that cannot be read gets a wrong one: it stays damaged.
    """
    if table.name not in _ENTRIES or all(row[-1] is not None for row in rows):
        return rows
    return [row if row[-1] is not None else (*row[:-1], _checksum(row)) for row in rows]


def _checksum(row: Row) -> int:
    topic_id, seq, body = row[0], row[1], row[-2]
    crc = checksum(topic_id, seq, body)
    return crc if is_sealed(body) or is_readable(seq, body) else crc ^ _WRONG


def count_damaged(table: CopiedTable, rows: Iterable[Row]) -> int:
    """Count the entries that do not have their checksum."""
    if table.name not in _ENTRIES:
        return 0
    return sum(not is_intact(row[0], row[1], row[-2], row[-1]) for row in rows)


class Renumbering:
    """Numbers the rows of one tenant; encrypted values, which are bound to their ids, are encrypted again."""

    def __init__(self, tenant: str, bases: IdBases, encryption: Encryption) -> None:
        """The tenant's newest key must have as many uses left as the tenant has values."""
        self._tenant = tenant
        self._bases = bases
        self._encryption = encryption

    def apply(self, table: CopiedTable, rows: list[Row], before: int) -> list[Row]:
        """Return rows with new ids; `before` rows of the same sequence of ids precede them."""
        if table.name in _ENTRIES:
            return [self._entry(_ENTRIES[table.name], row) for row in rows]
        if table.name == OPEN_DELTAS.name:
            return list(self._deltas(rows))
        if table.name == DEAD_LETTERS.name:
            return list(self._dead_letters(rows, before))
        if table.name == DELIVERIES.name:
            first, topic = self._bases.delivery + before + 1, self._bases.topic
            return [(n, *row[1:3], row[3] + topic, *row[4:]) for n, row in enumerate(rows, first)]
        if table.name == AUDIT.name:
            return [(n, *row[1:]) for n, row in enumerate(rows, self._bases.audit + before + 1)]
        if table.columns[0] == "topic_id":
            return [(row[0] + self._bases.topic, *row[1:]) for row in rows]
        assert table.name == IDEMPOTENCY.name or "topic_id" not in table.columns
        return rows

    def _entry(self, table: SealedTable, row: Row) -> Row:
        old, seq, *rest, body, crc = row
        new = old + self._bases.topic
        wrong = 0 if is_intact(old, seq, body, crc) else _WRONG
        if not wrong:
            body = self._seal_again(table, (old, seq), (new, seq), body)
        return (new, seq, *rest, body, checksum(new, seq, body) ^ wrong)

    def _deltas(self, rows: list[Row]) -> Iterator[Row]:
        for old, seq, ordinal, deltas in rows:
            new = old + self._bases.topic
            yield new, seq, ordinal, self._seal_again(SealedTable.OPEN_DELTAS, (old, seq), (new, seq), deltas)

    def _dead_letters(self, rows: list[Row], before: int) -> Iterator[Row]:
        for new, row in enumerate(rows, self._bases.delivery + before + 1):
            old, tenant, agent, topic_id, seq, attempts, reason, given_up_ms = row
            if isinstance(reason, bytes):
                reason = self._seal_again(SealedTable.DEAD_LETTERS, (old, 0), (new, 0), reason)
            yield new, tenant, agent, topic_id + self._bases.topic, seq, attempts, reason, given_up_ms

    def _seal_again(
        self, table: SealedTable, old: tuple[int, int], new: tuple[int, int], stored: bytes
    ) -> bytes:
        """Encrypt a value for its new row. One that does not open stays as it is, and does not open there."""
        if not is_sealed(stored) or not self._encryption.has_key(self._tenant):
            return stored
        try:
            plain = self._encryption.unseal(self._tenant, table, *old, stored)
        except CannotDecrypt:
            return stored
        return self._encryption.seal(self._tenant, table, *new, plain)
