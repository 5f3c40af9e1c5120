"""Body of one request on a connection that its protocol reads itself."""

from __future__ import annotations

import h11
from trunkline.v1 import catalogue

from trunkline_edge.transport.body_budget import BodyBudget
from trunkline_edge.transport.request_head import RequestParser, malformed


class RequestBody:
    """Collects a body of at most `max_bytes`, counted against a share of the budget until `release`.

    All received bytes go through the request's parser.
    """

    __slots__ = ("_body", "_budget", "_max_bytes", "_parser", "_share")

    def __init__(self, parser: RequestParser, budget: BodyBudget, share: str, max_bytes: int) -> None:
        self._parser = parser
        self._budget = budget
        self._share = share
        self._max_bytes = max_bytes
        self._body = bytearray()

    @property
    def awaits_continue(self) -> bool:
        """The client sends the body only after a 100 response."""
        return self._parser.they_are_waiting_for_100_continue

    def feed(self, data: bytes) -> bytes | None:
        """Add received bytes; return the whole body once it is complete. Raises Refused."""
        if data:
            self._parser.receive_data(data)
        while True:
            try:
                event = self._parser.next_event()
            except h11.RemoteProtocolError:
                raise malformed(self._parser.problem) from None
            if isinstance(event, h11.Data):
                self._add(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return bytes(self._body)
            elif not isinstance(event, h11.Request):
                return None

    def _add(self, data: bytes) -> None:
        if len(self._body) + len(data) > self._max_bytes:
            raise catalogue.BODY_TOO_LARGE.refused(limit=self._max_bytes)
        self._budget.reserve(self._share, len(data), len(self._body))
        self._body += data

    def release(self) -> None:
        """Count the body as buffered no longer. Idempotent."""
        self._budget.release(self._share, len(self._body))
        self._body.clear()
