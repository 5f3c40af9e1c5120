"""Settings whose values are unique across tenants: names reserved for dialects, digests of shared tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import TenantSettings
from trunkline_runtime.reserved_names import reserved_names

_TOKEN_DIGESTS = "client_auth.token_digests"


class _UniqueValue(NamedTuple):
    #: Path of the field in TenantSettings.
    field: str
    value: str


class UniqueSettings:
    """Owner of each unique value; cost does not grow with the number of tenants."""

    def __init__(self) -> None:
        self._owners: dict[_UniqueValue, str] = {}
        self._of_tenant: dict[str, list[_UniqueValue]] = {}

    def check(self, wanted: Mapping[str, TenantSettings]) -> None:
        """Check settings that are to be put together, by the name of their tenant.

        Raises Refused INVALID_ARGUMENT if two of them, or one of them and another tenant, share a value.
        """
        owners: dict[_UniqueValue, str] = {}
        for name, settings in wanted.items():
            for value in _unique_values(settings):
                owner = owners.setdefault(value, name)
                current = self._owners.get(value, name)
                if current not in wanted:
                    owner = current
                if owner != name:
                    raise _shared(value, owner, name)

    def put(self, name: str, settings: TenantSettings) -> None:
        """Set a tenant's values, which passed `check`; tenants that swap values may come in any order."""
        self.remove(name)
        if values := list(_unique_values(settings)):
            self._of_tenant[name] = values
            self._owners.update(dict.fromkeys(values, name))

    def remove(self, name: str) -> None:
        """Remove a tenant's values."""
        for value in self._of_tenant.pop(name, ()):
            # A swap may already have given the value to another tenant.
            if self._owners.get(value) == name:
                del self._owners[value]


def _unique_values(settings: TenantSettings) -> Iterator[_UniqueValue]:
    for reserved in reserved_names(settings):
        yield _UniqueValue(reserved.field, reserved.name)
    for digest in settings.client_auth.token_digests:
        yield _UniqueValue(_TOKEN_DIGESTS, digest)


def _shared(value: _UniqueValue, owner: str, name: str) -> Refused:
    if value.field == _TOKEN_DIGESTS:
        # Errors show no digests.
        shared = "a token is shared"
    else:
        shared = f"{value.field.removesuffix('s')} {value.value} is reserved"
    problem = f"{shared} by two tenants, {owner} and {name}"
    return catalogue.INVALID_ARGUMENT.refused(field=f"settings.{value.field}", problem=problem)
