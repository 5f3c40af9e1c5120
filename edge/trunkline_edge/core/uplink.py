"""Entries that wait for the router."""

from __future__ import annotations

from trunkline.v1.edge_service_pb2 import EdgeEntry, LinkRequest
from trunkline_runtime.credited_batch_queue import CreditedBatchQueue

#: Overhead of an entry beside the frame it carries.
ENTRY_BYTES = 32


class Uplink(CreditedBatchQueue[LinkRequest]):
    """Entries waiting for the router while the link is up; see CreditedBatchQueue.

    Nothing is kept across links: connections keep what must not be lost, and send it again. While the
    uplink is full, clients that send are not read from.
    """

    __slots__ = ("is_up",)

    def __init__(self, max_bytes: int, window: int) -> None:
        super().__init__(LinkRequest, ENTRY_BYTES, max_bytes, window)
        self.is_up = False

    def restart(self, is_up: bool) -> None:
        """Drop all entries: the link came up or broke."""
        self.is_up = is_up
        self.clear()

    def add(self, size: int = 0) -> EdgeEntry:
        """Append an entry for the caller to fill in; `size` is that of the frame it will carry."""
        return self.add_entry(size)  # type: ignore[no-any-return]
