"""Turns stored values into plain ones: compares checksums, decrypts, and reports what is damaged."""

from __future__ import annotations

from trunkline_router.core.values.log_records import EntryKind
from trunkline_router.log.damage_reports import DamageReports
from trunkline_router.log.encryption import CannotDecrypt, Encryption, SealedTable
from trunkline_router.log.stored_entries import in_epoch, is_intact, is_readable


class StoredValues:
    """Reads the stored values of one log, from any thread. A damaged one is reported and read as None."""

    def __init__(self, encryption: Encryption) -> None:
        self._encryption = encryption
        self._damage = DamageReports()

    def entry(
        self, tenant: str, table: SealedTable, topic_id: int, seq: int, stored: bytes, crc: int | None
    ) -> bytes | None:
        """Return the body of an entry."""
        if is_intact(topic_id, seq, stored, crc):
            body = self.value(tenant, table, topic_id, seq, stored)
            # A damaged row may have lost its checksum.
            if crc is not None or body is None or is_readable(seq, body):
                return body
        self._damage.found(topic_id, seq)
        return None

    def message(
        self, tenant: str, topic_id: int, seq: int, stored: bytes, crc: int | None, epoch: str, forked: int
    ) -> bytes | None:
        """Return a message with the position that it has now in a log with this epoch and last fork."""
        body = self.entry(tenant, SealedTable.MESSAGES, topic_id, seq, stored, crc)
        if body is None or seq > forked:
            return body
        return in_epoch(EntryKind.MESSAGE, body, epoch)

    def value(self, tenant: str, table: SealedTable, topic_id: int, seq: int, stored: bytes) -> bytes | None:
        """Return a value without a checksum."""
        try:
            return self._encryption.unseal(tenant, table, topic_id, seq, stored)
        except CannotDecrypt:
            self._damage.found(topic_id, seq)
            return None
