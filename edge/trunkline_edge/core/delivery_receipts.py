"""How far a client has been given its topics, told to the router on behalf of one that does not say it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import ErrorFrame

from trunkline_edge.core.uplink import Uplink

if TYPE_CHECKING:
    from trunkline_edge.core.topic import SubscribedTopic

#: Why the router does not take it: the log was begun anew, or the topic was left meanwhile.
_NOT_TAKEN = frozenset({catalogue.CURSOR_MISMATCH.code, catalogue.NOT_SUBSCRIBED.code})


class DeliveryReporter:
    """What the router was told of one client."""

    __slots__ = ("_is_refused", "_told")

    def __init__(self) -> None:
        #: Epoch and seq of each topic.
        self._told: dict[SubscribedTopic, tuple[str, int]] = {}
        self._is_refused = False

    def tell(self, number: int, topics: Iterable[SubscribedTopic], uplink: Uplink) -> None:
        """The connection of this number has taken all that it was written in these topics: tell what is news.

        Where the uplink has no room that is for later: after what is written next, or a heartbeat.
        """
        if not uplink.is_up or uplink.is_full:
            return
        for topic in topics:
            position = topic.epoch, topic.seq
            if topic.seq and self._told.get(topic) != position:
                self._told[topic] = position
                entry = uplink.add(len(topic.address) + len(topic.epoch)).frame
                entry.connection = number
                delivered = entry.frame.delivered
                delivered.position.epoch, delivered.position.seq = position
                delivered.address.MergeFromString(topic.address)

    def refuses(self, error: ErrorFrame) -> bool:
        """Whether an error answers what was told here, which is of no concern to the client."""
        is_refusal = not error.id and error.code in _NOT_TAKEN
        self._is_refused |= is_refusal
        return is_refusal

    def beat(self) -> None:
        """A heartbeat: what was refused, whichever it was, may be taken now."""
        if self._is_refused:
            self.link_lost()

    def link_lost(self) -> None:
        """What was on its way may not have come through: all of it is news again."""
        self._told.clear()
        self._is_refused = False

    def left(self, topic: SubscribedTopic) -> None:
        """The client does not hear the topic any longer."""
        self._told.pop(topic, None)
