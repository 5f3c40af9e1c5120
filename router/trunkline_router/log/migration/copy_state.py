"""State of a copy, kept in the log that is copied to, by which an interrupted copy continues."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from trunkline_router.log.migration.copied_log import LogVersion, RowKey
from trunkline_router.log.migration.copied_tables import CopiedTable
from trunkline_router.log.migration.row_digest import RowDigest

_FORMAT = 1


@dataclass(slots=True)
class TableProgress:
    """Progress in one table."""

    digest: RowDigest
    #: Key of the last row read; None for none.
    last: RowKey | None = None
    is_done: bool = False
    #: Entries that were damaged before.
    damaged: int = 0


@dataclass(slots=True)
class IdBases:
    """Added to the ids of a tenant whose rows join those of others; zero keeps ids."""

    topic: int = 0
    #: Dead letters and deliveries are numbered from here, in the order of their ids.
    delivery: int = 0
    audit: int = 0


@dataclass(slots=True)
class CopyState:
    """State of one copy."""

    source: LogVersion
    #: Tenants to copy; None for the whole log.
    tenants: list[str] | None
    #: Ids stay: the log that is copied to was empty.
    keeps_ids: bool
    #: Tenants that are complete.
    done: list[str] = field(default_factory=list)
    #: Highest id of the audit records, and generation of the key of digests, that were there before.
    audit_id: int = 0
    log_key: int = 0
    bases: IdBases | None = None
    #: Of the tenant that is being copied, or of the whole log, by the name of the table.
    tables: dict[str, TableProgress] = field(default_factory=dict)
    #: The copy is verified, and the log in use.
    is_complete: bool = False
    #: Rows of what is complete.
    totals: dict[str, RowDigest] = field(default_factory=dict)

    @property
    def tenant(self) -> str | None:
        """The tenant that is being copied; None for the whole log, or if all are complete."""
        return next((each for each in self.tenants or () if each not in self.done), None)

    def progress(self, table: CopiedTable) -> TableProgress:
        """Return the progress in a table, which starts with nothing."""
        return self.tables.setdefault(table.name, TableProgress(RowDigest(table)))

    def dumps(self) -> str:
        """Format the state."""
        return json.dumps(
            {
                "format": _FORMAT,
                "source": self.source,
                "tenants": self.tenants,
                "keeps_ids": self.keeps_ids,
                "done": self.done,
                "is_complete": self.is_complete,
                "audit_id": self.audit_id,
                "log_key": self.log_key,
                "bases": self.bases and [self.bases.topic, self.bases.delivery, self.bases.audit],
                "tables": {
                    name: [
                        each.digest.rows,
                        each.digest.hexdigest(),
                        each.last and [_encode(value) for value in each.last],
                        each.is_done,
                        each.damaged,
                    ]
                    for name, each in self.tables.items()
                },
                "totals": {name: [each.rows, each.hexdigest()] for name, each in self.totals.items()},
            }
        )

    @classmethod
    def loads(cls, text: str, tables: tuple[CopiedTable, ...]) -> CopyState:
        """Parse a state. Raises ValueError if another version of Trunkline wrote it."""
        fields = json.loads(text)
        if fields["format"] != _FORMAT:
            raise ValueError(f"the copy has format {fields['format']}")
        state = cls(
            LogVersion(*fields["source"]),
            fields["tenants"],
            fields["keeps_ids"],
            fields["done"],
            fields["audit_id"],
            fields["log_key"],
            fields["bases"] and IdBases(*fields["bases"]),
        )
        state.is_complete = fields["is_complete"]
        for table in tables:
            if found := fields["tables"].get(table.name):
                rows, digest, last, is_done, damaged = found
                state.tables[table.name] = TableProgress(
                    RowDigest.load(table, rows, digest),
                    last and tuple(_decode(value) for value in last),
                    is_done,
                    damaged,
                )
            if found := fields["totals"].get(table.name):
                state.totals[table.name] = RowDigest.load(table, *found)
        return state


def _encode(value: int | str | bytes) -> Any:
    return {"hex": value.hex()} if isinstance(value, bytes) else value


def _decode(value: Any) -> int | str | bytes:
    decoded: int | str | bytes = bytes.fromhex(value["hex"]) if isinstance(value, dict) else value
    return decoded
