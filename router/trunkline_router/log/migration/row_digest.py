"""Digests of rows, equal on every engine and in every order of reading."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

from trunkline_router.log.migration.copied_tables import BLOBS, CopiedTable, Row

_BYTES = 32
_MASK = (1 << 8 * _BYTES) - 1


class RowDigest:
    """Digest of a set of rows, added in any order: the sum of their hashes."""

    def __init__(self, table: CopiedTable, rows: int = 0, total: int = 0) -> None:
        self._blobs = [index for index, name in enumerate(table.columns) if name in BLOBS]
        self.rows = rows
        self._total = total

    @classmethod
    def load(cls, table: CopiedTable, rows: int, text: str) -> RowDigest:
        """Continue the digest with this `hexdigest`."""
        return cls(table, rows, int(text, 16))

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows."""
        total, count, blobs = self._total, 0, self._blobs
        for row in rows:
            count += 1
            if blobs:
                # Large values are hashed as they are, after their lengths.
                fixed = list(row)
                for index in blobs:
                    fixed[index] = len(row[index])
                content = b"".join((repr(fixed).encode(), *[row[index] for index in blobs]))
            else:
                content = repr(list(row)).encode()
            total += int.from_bytes(blake2b(content, digest_size=_BYTES).digest(), "big")
        self.rows += count
        self._total = total & _MASK

    def merge(self, other: RowDigest) -> None:
        """Add the rows of another digest."""
        self.rows += other.rows
        self._total = (self._total + other._total) & _MASK

    def hexdigest(self) -> str:
        """Return the digest as 64 hexadecimal digits."""
        return f"{self._total:0{2 * _BYTES}x}"
