"""Tenant limits, read from the options and comments of `TenantLimits` in tenant.proto.

TENANT_LIMITS["frame_bytes"]  # TenantLimit(name="frame_bytes", default=12582912, unit="bytes", …)
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from trunkline.v1.catalogue import ENTRIES, Entry
from trunkline.v1.comments import COMMENTS
from trunkline.v1.error_pb2 import ErrorCode
from trunkline.v1.tenant_pb2 import TenantLimits, limit_spec


class TenantLimit(NamedTuple):
    """One limit of a tenant: a field of `TenantLimits`."""

    name: str
    #: Value if the tenant sets none (0) and the router's settings name no other.
    default: int
    #: Unit of the value: `bytes`, `connections`, `messages/s`, …
    unit: str
    #: Catalogue entry that reports an excess.
    exceeded: Entry
    #: Comment of the field in tenant.proto.
    comment: str
    #: Largest value that the field and a signed 64-bit database column can both hold.
    max_value: int

    @property
    def is_size(self) -> bool:
        """The limit counts bytes, so people read and write it with a unit such as MiB."""
        return self.unit.startswith("bytes")


def _tenant_limits() -> dict[str, TenantLimit]:
    limits = {}
    for field in TenantLimits.DESCRIPTOR.fields:
        spec = field.GetOptions().Extensions[limit_spec]
        code = ErrorCode.Name(spec.exceeded).removeprefix("ERROR_CODE_")
        is_wide = field.type == FieldDescriptor.TYPE_UINT64
        limits[field.name] = TenantLimit(
            name=field.name,
            default=spec.default_value,
            unit=spec.unit,
            exceeded=ENTRIES[code],
            comment=COMMENTS[f"TenantLimits.{field.name}"],
            max_value=2**63 - 1 if is_wide else 2**32 - 1,
        )
    return limits


#: Each limit by its name, in the order of the contract.
TENANT_LIMITS: Final[Mapping[str, TenantLimit]] = MappingProxyType(_tenant_limits())


def default_limits(**changed: int) -> TenantLimits:
    """Limits of a tenant that sets none; `changed` replaces defaults, such as those from settings."""
    defaults = {limit.name: limit.default for limit in TENANT_LIMITS.values()}
    return TenantLimits(**(defaults | changed))
