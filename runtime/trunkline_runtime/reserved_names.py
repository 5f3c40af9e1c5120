"""Names that a tenant reserves for one dialect, such as LangBot pipelines, read from its settings.

The table of fields comes from the contract: a field of TenantSettings with the option `reserved_for` lists
the names for that dialect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from trunkline.v1.tenant_pb2 import TenantSettings, reserved_for

#: Fields of TenantSettings that reserve names, by dialect.
RESERVED_FIELDS: Mapping[str, str] = {
    dialect: field.name
    for field in TenantSettings.DESCRIPTOR.fields
    if (dialect := field.GetOptions().Extensions[reserved_for])
}


class ReservedName(NamedTuple):
    """A name that belongs to one tenant only, within its dialect."""

    dialect: str
    name: str

    @property
    def field(self) -> str:
        """The field of TenantSettings that lists the name."""
        return RESERVED_FIELDS[self.dialect]


def reserved_names(settings: TenantSettings) -> Iterator[ReservedName]:
    """Every name that a tenant reserves, for all dialects."""
    for dialect, field in RESERVED_FIELDS.items():
        for name in getattr(settings, field):
            yield ReservedName(dialect, name)
