"""Requests until they are answered, refused or given up. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from trunkline.v1.frame_pb2 import ClientFrame, ConnectionLimits

#: In the place of a topic: whichever the message that is to change is in.
ANY_TOPIC = b""


class PendingRequests:
    """The application's requests, which outlive connections, and the session's own, which do not.

    A request that was refused because too much was sent is held back, and so is each that is written after
    it, until `due` gives them out in the order in which they were begun. `topic_of` gives the topic whose log
    a request becomes an entry of, or ANY_TOPIC, or None.
    """

    def __init__(self, topic_of: Callable[[ClientFrame], bytes | None]) -> None:
        self._topic_of = topic_of
        self._asked: dict[str, ClientFrame] = {}
        self._own: dict[str, ClientFrame] = {}
        #: What becomes an entry of a log, written to the present connection and not answered on it; with
        #: its topic.
        self._in_flight: dict[str, bytes] = {}
        self._held_back: set[str] = set()

    def __len__(self) -> int:
        return len(self._asked)

    def __iter__(self) -> Iterator[tuple[str, ClientFrame]]:
        """The application's."""
        return iter(list(self._asked.items()))

    def get(self, request_id: str) -> ClientFrame | None:
        """One of the application's."""
        return self._asked.get(request_id)

    @property
    def are_held_back(self) -> bool:
        """Whether some wait."""
        return bool(self._held_back)

    # A request's life.

    def begin(self, request_id: str, frame: ClientFrame) -> None:
        """The application asks. Raises ValueError while another request of this id is unanswered."""
        if request_id in self._asked:
            raise ValueError(f"a request with id {request_id} is not answered yet")
        self._asked[request_id] = frame

    def begin_own(self, request_id: str, frame: ClientFrame) -> None:
        """The session asks."""
        self._own[request_id] = frame

    def write(self, request_id: str) -> list[ClientFrame]:
        """What to send for it now."""
        if self._held_back:
            self._held_back.add(request_id)
            return []
        return [self._written(request_id)]

    def hold_back(self, request_id: str) -> bool:
        """It was refused as too much was sent. False for what is nobody's, which is not held back."""
        if request_id not in self._asked and request_id not in self._own:
            return False
        self._held_back.add(request_id)
        return True

    def due(self, limits: ConnectionLimits) -> list[ClientFrame]:
        """What to send now of those held back: as much as the edge takes in a second, and one at least."""
        taken: list[str] = []
        size = 0
        for request_id, frame in (self._own | self._asked).items():
            if request_id not in self._held_back:
                continue
            size += frame.ByteSize()
            if taken and (0 < limits.messages_per_s <= len(taken) or 0 < limits.bytes_per_s < size):
                break
            taken.append(request_id)
        self._held_back.difference_update(taken)
        return [self._written(request_id) for request_id in taken]

    def landed(self, request_id: str) -> bytes | None:
        """The edge has said what became of it; returns its topic where it was to be an entry."""
        return self._in_flight.pop(request_id, None)

    def end(self, request_id: str) -> bool:
        """It is answered, refused or given up; False where it was none of the application's. Idempotent."""
        self._own.pop(request_id, None)
        self._held_back.discard(request_id)
        return self._asked.pop(request_id, None) is not None

    def connection_lost(self) -> None:
        """Nothing is written or held back any longer, and the session's own are over."""
        self._own.clear()
        self._in_flight.clear()
        self._held_back.clear()

    def in_flight(self, topic: bytes) -> int:
        """How many may yet become entries of this topic."""
        if not self._in_flight:
            return 0
        return sum(each in (topic, ANY_TOPIC) for each in self._in_flight.values())

    def _written(self, request_id: str) -> ClientFrame:
        frame = self._own.get(request_id) or self._asked[request_id]
        topic = self._topic_of(frame)
        if topic is not None:
            self._in_flight[request_id] = topic
        return frame
