"""Dispatcher of client frames to their handlers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import ClientFrame
from trunkline.v1.frames import CLIENT_FRAMES

from trunkline_router.core.clients.received_frame import ReceivedFrame
from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.directory.connections import Link
from trunkline_router.core.validation.validator import check

FrameHandler = Callable[[ReceivedFrame[Any]], None]


class _Route(NamedTuple):
    handle: FrameHandler
    #: Frames of this kind have an `id`, which an error repeats.
    needs_id: bool


class FrameDispatcher:
    """Checks each client frame and calls its handler. A rejected frame is answered with `error`.

    Handlers are found by name: a frame kind that the contract forwards to the router is handled by
    the method `handle_<kind>` of one of `handlers`.
    """

    def __init__(self, outbox: ClientOutbox, handlers: Sequence[object]) -> None:
        self._outbox = outbox
        self._routes = {
            kind: _Route(_handler(kind, handlers), rule.needs_id)
            for kind, rule in CLIENT_FRAMES.items()
            if rule.is_forwarded
        }

    def received(self, link: Link, number: int, frame: ClientFrame, now: float) -> None:
        """A client sent a frame. Frames of connections that are gone are ignored."""
        connection = link.connections.get(number)
        if connection is None:
            return
        kind = frame.WhichOneof("frame") or "unknown"
        tenant = connection.tenant
        route = self._routes.get(kind)
        try:
            if route is None:
                raise catalogue.UNKNOWN_FRAME_TYPE.refused(type=kind)
            tenant.check_active()
            if connection.permissions is not None:
                connection.permissions.check_frame(kind)
            size = frame.ByteSize()
            tenant.take(size, now)
            body = getattr(frame, kind)
            check(body, size=size)
            route.handle(ReceivedFrame(connection, body, size, now))
        except Refused as reason:
            tenant.refused[reason.entry.code] += 1
            frame_id = getattr(frame, kind).id if route is not None and route.needs_id else ""
            self._outbox.refuse(connection, frame_id, reason)


def _handler(kind: str, handlers: Sequence[object]) -> FrameHandler:
    (found,) = (each for each in handlers if hasattr(each, f"handle_{kind}"))
    handler: FrameHandler = getattr(found, f"handle_{kind}")
    return handler
