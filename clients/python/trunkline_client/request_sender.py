"""Requests to an edge that wait for their responses."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TypeVar

from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import ClientFrame, ErrorFrame

from trunkline_client.effects import ResponseFrame
from trunkline_client.errors import OutcomeUnknown, QueueFull, Refused, TimedOut, Unreachable
from trunkline_client.reconnecting_transport import ReconnectingTransport
from trunkline_client.rpc_errors import error_from_message
from trunkline_client.session import Session

A = TypeVar("A", bound=ResponseFrame)


@dataclass(eq=False, slots=True)
class _Waiter:
    response: asyncio.Future[ResponseFrame]
    #: Whether the request changes something.
    changes: bool
    #: Whether the edge may have it; known once the wait for the response is over.
    sent: bool = False


class RequestSender:
    """Sends requests, and completes them with what the session reports.

    At most `max_unanswered` requests are pending; the next one waits for its turn.
    """

    def __init__(
        self, edge: str, session: Session, transport: ReconnectingTransport, max_unanswered: int
    ) -> None:
        self._edge = edge
        self._session = session
        self._transport = transport
        self._max_unanswered = max_unanswered
        self._slots = asyncio.Semaphore(max_unanswered)
        self._waiters: dict[str, _Waiter] = {}
        self._end: BaseException | None = None

    async def request(
        self, frame: ClientFrame, response: type[A], timeout_s: float, *, changes: bool = True
    ) -> A:
        """Sends a request, again after each reconnect, until it is answered with a frame of this type.

        Raises Refused if the edge rejects it, and ValueError for an id that is in use. If no answer
        arrives in time, or the client ends first, raises OutcomeUnknown (TimedOut) if the request was
        sent and changes something. Otherwise it raises Unreachable, or the error that ended the client:
        nothing was done. An answer that arrives together with the timeout counts.
        """
        self._check_size(frame)
        waiter = _Waiter(asyncio.get_running_loop().create_future(), changes)
        try:
            async with asyncio.timeout(timeout_s), self._slots:
                await self._await_response(frame, waiter)
        except TimeoutError:
            if not waiter.response.done():
                raise self._timeout_error(waiter, timeout_s) from None
        answer = waiter.response.result()
        assert isinstance(answer, response)
        return answer

    def _timeout_error(self, waiter: _Waiter, timeout_s: float) -> TimedOut | Unreachable:
        if waiter.sent and waiter.changes:
            return TimedOut(
                f"No answer from {self._edge} within {timeout_s:g} s; it may have been carried out"
            )
        reason = "no answer" if waiter.sent else "no connection for the request"
        return Unreachable(self._edge, f"{reason} within {timeout_s:g} s")

    async def _await_response(self, frame: ClientFrame, waiter: _Waiter) -> None:
        if self._end is not None:
            raise self._end
        request_id: str = getattr(frame, frame.WhichOneof("frame") or "").id
        to_send = self._session.request(request_id, frame)
        self._waiters[request_id] = waiter
        try:
            for each in to_send:
                self._transport.send(each)
            # Unlike an await of the future itself, a timeout here leaves it open for a late response.
            await asyncio.wait({waiter.response})
        finally:
            waiter.sent = self._session.was_sent(request_id)
            del self._waiters[request_id]
            self._session.give_up(request_id)

    def send_unanswered(self, frame: ClientFrame) -> None:
        """Sends a frame that has no answer.

        Raises Unreachable while not connected, and QueueFull while the socket takes no more.
        """
        self._check_size(frame)
        if self._end is not None:
            raise self._end
        if not self._session.connected:
            raise Unreachable(self._edge, "there is no connection at the moment")
        if self._transport.outbox_len >= self._max_unanswered:
            raise QueueFull("Too many frames are unwritten")
        self._transport.send(frame)

    def complete(self, request_id: str, response: ResponseFrame) -> None:
        """Completes a request."""
        waiter = self._waiters.get(request_id)
        if waiter is not None and not waiter.response.done():
            waiter.response.set_result(response)

    def fail(self, request_id: str, error: ErrorFrame) -> None:
        """Fails a request."""
        waiter = self._waiters.get(request_id)
        if waiter is not None and not waiter.response.done():
            waiter.response.set_exception(error_from_message(error, may_have_effect=waiter.changes))

    def end(self, error: BaseException) -> None:
        """Fails all requests, and those to come."""
        self._end = error
        for request_id, waiter in self._waiters.items():
            if waiter.response.done():
                continue
            if waiter.changes and self._session.was_sent(request_id):
                unknown = OutcomeUnknown(f"The client ended before {self._edge} answered: {error}")
                unknown.__cause__ = error
                waiter.response.set_exception(unknown)
            else:
                waiter.response.set_exception(error)

    def _check_size(self, frame: ClientFrame) -> None:
        """Rejects a frame for which the edge would close the connection, each time it is sent again."""
        limit = self._session.limits.frame_bytes
        if limit and frame.ByteSize() > limit:
            entry = catalogue.FRAME_TOO_LARGE
            raise Refused(entry.code, entry.sentence(limit=limit))
