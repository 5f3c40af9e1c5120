"""Delivery receipts, sent to the router on behalf of clients that do not send `delivered` themselves."""

from __future__ import annotations

from collections.abc import Iterable

from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import ErrorFrame

from trunkline_edge.core.topic_head import TopicHead
from trunkline_edge.core.uplink import Uplink

#: The router rejects a receipt if the log's epoch changed or the client has left the topic.
_REJECTIONS = frozenset({catalogue.CURSOR_MISMATCH.code, catalogue.NOT_SUBSCRIBED.code})
#: No position was reported.
_NOTHING = ("", 0)


class DeliveryReporter:
    """Reports how far one client has received its topics, each position once per link."""

    __slots__ = ("_reported", "_was_rejected")

    def __init__(self, heads: Iterable[TopicHead] = ()) -> None:
        """`heads` are those of the topics that the client is subscribed to."""
        #: Epoch and seq reported by topic, for every topic that the client is subscribed to.
        self._reported: dict[TopicHead, tuple[str, int]] = dict.fromkeys(heads, _NOTHING)
        self._was_rejected = False

    def subscribe(self, head: TopicHead) -> None:
        """Report on a topic from here on."""
        self._reported[head] = _NOTHING

    def unsubscribe(self, head: TopicHead) -> None:
        """Drop a topic that the client has left."""
        self._reported.pop(head, None)

    def report(self, number: int, uplink: Uplink) -> None:
        """Report new positions of connection `number`, which has taken everything written to it.

        While the uplink is full nothing is reported; the next write or heartbeat tries again.
        """
        if not uplink.is_up or uplink.is_full:
            return
        for head, reported in self._reported.items():
            if head.seq and (head.seq != reported[1] or head.epoch != reported[0]):
                position = self._reported[head] = head.epoch, head.seq
                entry = uplink.add(len(head.address) + len(head.epoch)).frame
                entry.connection = number
                delivered = entry.frame.delivered
                delivered.position.epoch, delivered.position.seq = position
                delivered.address.MergeFromString(head.address)

    def absorb_rejection(self, error: ErrorFrame) -> bool:
        """Return True if an error rejects a receipt and must not reach the client."""
        is_rejection = not error.id and error.code in _REJECTIONS
        self._was_rejected |= is_rejection
        return is_rejection

    def retry_rejected(self) -> None:
        """Report every position again if a receipt was rejected, whichever it was; call at each heartbeat."""
        if self._was_rejected:
            self.link_lost()

    def link_lost(self) -> None:
        """Report every position again on the next link: receipts in flight may be lost."""
        self._reported = dict.fromkeys(self._reported, _NOTHING)
        self._was_rejected = False
