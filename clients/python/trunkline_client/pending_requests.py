"""Requests of a client until they are answered, rejected or given up. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from trunkline.v1.frame_pb2 import ClientFrame, ConnectionLimits

from trunkline_client.client_subscriptions import ANY_TOPIC


class PendingRequests:
    """The application's requests, which outlive connections, and the session's own, which do not.

    A request that was rejected by the rate limit is deferred, and so is each request that is written
    after it, until `take_due` returns them in the order in which they were begun. `topic_of` returns the
    topic whose log gets an entry by the request, or ANY_TOPIC, or None.
    """

    def __init__(self, topic_of: Callable[[ClientFrame], bytes | None]) -> None:
        self._topic_of = topic_of
        self._requests: dict[str, ClientFrame] = {}
        self._internal: dict[str, ClientFrame] = {}
        #: Topics of requests that were written to the current connection and may become log entries.
        self._in_flight: dict[str, bytes] = {}
        self._deferred: set[str] = set()
        #: The application's requests that were written to any connection.
        self._written: set[str] = set()

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[tuple[str, ClientFrame]]:
        """Iterates over the application's requests."""
        return iter(list(self._requests.items()))

    def get(self, request_id: str) -> ClientFrame | None:
        """One of the application's requests."""
        return self._requests.get(request_id)

    @property
    def has_deferred(self) -> bool:
        """Whether requests are deferred."""
        return bool(self._deferred)

    def was_written(self, request_id: str) -> bool:
        """Whether the edge may have a request: it was written at least once, or is no longer pending.

        A request that has ended was answered, so it was written.
        """
        return request_id in self._written or request_id not in self._requests

    # Life of a request.

    def begin(self, request_id: str, frame: ClientFrame) -> None:
        """Adds a request of the application. Raises ValueError while another one has this id."""
        if request_id in self._requests:
            raise ValueError(f"a request with id {request_id} is not answered yet")
        self._requests[request_id] = frame

    def begin_internal(self, request_id: str, frame: ClientFrame) -> None:
        """Adds a request of the session."""
        self._internal[request_id] = frame

    def write(self, request_id: str) -> list[ClientFrame]:
        """Returns the frames to send for a request now: its own, or none if it is deferred."""
        if self._deferred:
            self._deferred.add(request_id)
            return []
        return [self._write(request_id)]

    def defer(self, request_id: str) -> bool:
        """Defers a request that the rate limit rejected; False if no request has this id."""
        if request_id not in self._requests and request_id not in self._internal:
            return False
        self._deferred.add(request_id)
        return True

    def take_due(self, limits: ConnectionLimits) -> list[ClientFrame]:
        """Returns the deferred requests to send now: what the edge takes in a second, but at least one."""
        taken: list[str] = []
        size = 0
        for request_id, frame in (self._internal | self._requests).items():
            if request_id not in self._deferred:
                continue
            size += frame.ByteSize()
            if taken and (0 < limits.messages_per_s <= len(taken) or 0 < limits.bytes_per_s < size):
                break
            taken.append(request_id)
        self._deferred.difference_update(taken)
        return [self._write(request_id) for request_id in taken]

    def record_answer(self, request_id: str) -> bytes | None:
        """Records the edge's answer; returns the topic of a request that could become an entry."""
        return self._in_flight.pop(request_id, None)

    def end(self, request_id: str) -> bool:
        """Removes a request; False if the application has none of this id. Idempotent."""
        self._internal.pop(request_id, None)
        self._deferred.discard(request_id)
        self._written.discard(request_id)
        return self._requests.pop(request_id, None) is not None

    def connection_lost(self) -> None:
        """Ends the session's own requests; the application's are to be written again."""
        self._internal.clear()
        self._in_flight.clear()
        self._deferred.clear()

    def in_flight(self, topic: bytes) -> int:
        """Number of requests that may still become entries of this topic."""
        if not self._in_flight:
            return 0
        return sum(each in (topic, ANY_TOPIC) for each in self._in_flight.values())

    def _write(self, request_id: str) -> ClientFrame:
        frame = self._internal.get(request_id)
        if frame is None:
            frame = self._requests[request_id]
            self._written.add(request_id)
        topic = self._topic_of(frame)
        if topic is not None:
            self._in_flight[request_id] = topic
        return frame
