"""What a client has asked and is waiting for."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import ClientFrame, ErrorFrame

from trunkline_client.errors import Disconnected, QueueFull, Refused, TimedOut
from trunkline_client.events import ResponseFrame
from trunkline_client.reconnecting_transport import ReconnectingTransport
from trunkline_client.session import Session

A = TypeVar("A", bound=ResponseFrame)


class RequestSender:
    """Callers that wait for answers, at most `max_unanswered`; the next one waits for its turn."""

    def __init__(self, session: Session, carrier: ReconnectingTransport, max_unanswered: int) -> None:
        self._session = session
        self._carrier = carrier
        self._max_unanswered = max_unanswered
        self._turns = asyncio.Semaphore(max_unanswered)
        self._waiting: dict[str, asyncio.Future[ResponseFrame]] = {}
        self._ended: BaseException | None = None

    async def ask(self, frame: ClientFrame, answer: type[A], timeout_s: float) -> A:
        """Sends a request, again after each reconnect, until it is answered with a frame of this type.

        Raises TimedOut, Refused, what `end` was given, and ValueError for an id that is being used.
        """
        self._check_size(frame)
        request_id: str = getattr(frame, frame.WhichOneof("frame") or "").id
        try:
            async with asyncio.timeout(timeout_s), self._turns:
                answered = await self._answer_to(request_id, frame)
        except TimeoutError:
            raise TimedOut(f"No answer within {timeout_s:g} s") from None
        assert isinstance(answered, answer)
        return answered

    async def _answer_to(self, request_id: str, frame: ClientFrame) -> ResponseFrame:
        if self._ended is not None:
            raise self._ended
        to_send = self._session.ask(request_id, frame)
        future: asyncio.Future[ResponseFrame] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        try:
            for each in to_send:
                self._carrier.send(each)
            return await future
        finally:
            del self._waiting[request_id]
            self._session.give_up(request_id)

    def say(self, frame: ClientFrame) -> None:
        """Sends a frame that has no answer.

        Raises Disconnected while not connected and QueueFull where the socket takes no more.
        """
        self._check_size(frame)
        if self._ended is not None:
            raise self._ended
        if not self._session.connected:
            raise Disconnected("There is no connection at the moment")
        if self._carrier.outbox_len >= self._max_unanswered:
            raise QueueFull("Too many frames wait to be written")
        self._carrier.send(frame)

    def answered(self, request_id: str, answer: ResponseFrame) -> None:
        """Completes a request."""
        future = self._waiting.get(request_id)
        if future is not None and not future.done():
            future.set_result(answer)

    def refused(self, request_id: str, error: ErrorFrame) -> None:
        """Fails a request."""
        future = self._waiting.get(request_id)
        if future is not None and not future.done():
            future.set_exception(
                Refused(
                    error.code,
                    error.message,
                    retryable=error.retryable,
                    retry_after_ms=error.retry_after_ms,
                )
            )

    def end(self, error: BaseException) -> None:
        """Fails all requests, and those to come."""
        self._ended = error
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)

    def _check_size(self, frame: ClientFrame) -> None:
        """A frame that is too large would close the connection, and again each time it is sent again."""
        limit = self._session.limits.frame_bytes
        if limit and frame.ByteSize() > limit:
            raise Refused("FRAME_TOO_LARGE", catalogue.FRAME_TOO_LARGE.sentence(limit=limit))
