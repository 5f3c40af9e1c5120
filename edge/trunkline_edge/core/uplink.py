"""What waits for the router."""

from __future__ import annotations

from trunkline.v1.edge_service_pb2 import EdgeEntry, LinkRequest
from trunkline_runtime.credited_batch_queue import CreditedBatchQueue

#: What an entry costs beside the frame it carries.
ENTRY_BYTES = 32


class Uplink(CreditedBatchQueue[LinkRequest]):
    """Entries waiting for the router while the link is up; see LinkBatches.

    Nothing is kept across links: what must not be lost is kept with its connection and is sent
    again. While it is full the edge reads from no client that sends.
    """

    __slots__ = ("is_up",)

    def __init__(self, max_bytes: int, window: int) -> None:
        super().__init__(LinkRequest, ENTRY_BYTES, max_bytes, window)
        self.is_up = False

    def restart(self, is_up: bool) -> None:
        """The link came up or broke: begin with nothing."""
        self.is_up = is_up
        self.clear()

    def add(self, size: int = 0) -> EdgeEntry:
        """A new entry at the end, to be filled in; `size` is that of the frame it will carry."""
        return self.add_entry(size)  # type: ignore[no-any-return]
