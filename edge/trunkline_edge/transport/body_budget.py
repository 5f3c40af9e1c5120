"""Bounds of the memory that request bodies take while they are read."""

from __future__ import annotations

from trunkline.v1 import catalogue

#: The router accepts messages of 12 MiB; their JSON is a little longer.
MAX_BODY_BYTES = 13 << 20

#: Bounds of all buffered bodies together, and of those of one share; beyond them requests are rejected with
#: OVERLOADED.
MAX_TOTAL_BYTES = 64 << 20
MAX_SHARE_BYTES = 2 * MAX_BODY_BYTES

#: Bodies up to here are always read, so that large ones cannot keep them out. The number of HTTP connections
#: bounds them.
SMALL_BODY_BYTES = 16 << 10

#: A body that is too large is read and dropped up to here, because clients read the response after sending.
MAX_DROPPED_BYTES = 64 << 20

#: The share of callers who may have made up their proof.
STRANGERS = ""


class BodyBudget:
    """Counts buffered bodies.

    A share, which is a tenant's or that of all strangers, has 26 MiB at one time, and all together 64 MiB, so
    that none takes all of it. Bodies up to 16 KiB fit in any case.
    """

    def __init__(self) -> None:
        self.buffered_bytes = 0
        #: Without shares that have none.
        self._bytes_of_share: dict[str, int] = {}

    def reserve(self, share: str, size: int, buffered: int = 0) -> None:
        """Count bytes of a body as buffered; `buffered` of it are already. Raises Refused OVERLOADED."""
        self.check(share, size, buffered + size)
        self.buffered_bytes += size
        self._bytes_of_share[share] = self._bytes_of_share.get(share, 0) + size

    def release(self, share: str, size: int) -> None:
        """Count them as buffered no longer."""
        self.buffered_bytes -= size
        rest = self._bytes_of_share.get(share, 0) - size
        if rest > 0:
            self._bytes_of_share[share] = rest
        else:
            self._bytes_of_share.pop(share, None)

    def check(self, share: str, size: int, whole: int) -> None:
        """Check for `size` more bytes of a body that then has `whole`. Raises Refused OVERLOADED."""
        if whole <= SMALL_BODY_BYTES:
            return
        if self.buffered_bytes + size > MAX_TOTAL_BYTES:
            raise catalogue.OVERLOADED.refused(problem="other requests' bodies")
        if self._bytes_of_share.get(share, 0) + size > MAX_SHARE_BYTES:
            problem = "other requests' bodies of this tenant" if share else "bodies of callers with new keys"
            raise catalogue.OVERLOADED.refused(problem=problem)

    def __repr__(self) -> str:
        return f"<BodyBudget {self.buffered_bytes} bytes>"
