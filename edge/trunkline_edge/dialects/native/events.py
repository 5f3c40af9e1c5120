"""The native protocol as server-sent events: `/v1/events`, to the client only, see docs/protocol.md.

The format is https://html.spec.whatwg.org/multipage/server-sent-events.html. All subscribers of a topic
share the same encoded events, so these carry no ids. Each write to a client ends with an `id`, the client's
cursor in all its topics, which it sends back to resume.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from zlib import crc32

from trunkline.v1.address_pb2 import Address
from trunkline.v1.edge_service_pb2 import ConnectionOpened
from trunkline.v1.frame_pb2 import ClientFrame, ResumeFrame, ServerFrame

from trunkline_edge.dialects.codec import Codec, Framing
from trunkline_edge.dialects.dialect import Clock, ConnectPlan, ConnectRequest, Dialect
from trunkline_edge.dialects.native.handshake import (
    DEFAULT,
    RESUME_BY_DELIVERY,
    invalid,
    plan_of,
    positions_of,
)
from trunkline_edge.dialects.paths import Path

#: The header with which a browser, or any EventSource, resumes.
LAST_EVENT_ID = "last-event-id"

#: Reconnect delay after a lost connection: each client gets its own value of the range, so that clients
#: do not reconnect all at once.
RETRY_MS = range(1000, 3000)

_POSITION = re.compile(r"([^\s~]{0,64})\.(\d{1,20})", re.ASCII)
_MAX_SEQ = 2**64 - 1


class NativeEvents(Codec):
    """The codec `trunkline.v1.events`: each event is a frame in `trunkline.v1.json`, named by its type."""

    name = "trunkline.v1.events"
    framing = Framing.NONE
    appends_cursor = True
    rejects_by_http = True

    def decode(self, payload: bytes, binary: bool = False) -> ClientFrame | None:
        """See Codec. Clients cannot send."""
        return None

    def encode(self, frame: ServerFrame) -> bytes:
        """See Codec. The JSON contains no line breaks."""
        kind = frame.WhichOneof("frame") or "unknown"
        retry_ms = _retry_ms(frame)
        retry = b"retry: %d\n" % retry_ms if retry_ms else b""
        return b"event: %b\n%bdata: %b\n\n" % (kind.encode(), retry, DEFAULT.encode(frame))

    def with_cursor(self, data: bytes, positions: Sequence[bytes]) -> bytes:
        """See Codec. The id is part of the last event, so that a client gets both or none."""
        return b"".join((data[:-1], b"id: ", b"~".join(positions), b"\n\n"))

    def heartbeat(self) -> bytes:
        """See Codec. A comment."""
        return b": ping\n\n"


def _retry_ms(frame: ServerFrame) -> int:
    if frame.HasField("connected"):
        return RETRY_MS[crc32(frame.connected.connection_id.encode()) % len(RETRY_MS)]
    return frame.closing.reconnect_after_ms


EVENTS = NativeEvents()


def connect(request: ConnectRequest) -> ConnectPlan:
    """See Dialect. The cursor in `Last-Event-ID` is newer than the one in the URL."""
    plan, resume = plan_of(request, EVENTS)
    resume = request.headers.get(LAST_EVENT_ID, "") or resume
    if resume == RESUME_BY_DELIVERY:
        plan.opened.resume.delivered = True
    elif "." in resume:
        plan.opened.resume.CopyFrom(_positions_in(resume, plan.opened))
    elif resume:
        plan.opened.resume.CopyFrom(positions_of(resume))
    return plan


def _positions_in(last_id: str, opened: ConnectionOpened) -> ResumeFrame:
    """The positions in an event's id. Raises Refused INVALID_ADDRESS."""
    matches = [_POSITION.fullmatch(text) for text in last_id.split("~")]
    topics = list(_topics(opened))
    resume = ResumeFrame()
    for address, match in zip(topics, matches, strict=False):
        if match is not None and int(match[2]) <= _MAX_SEQ:
            position = resume.positions.add(address=address).position
            position.epoch, position.seq = match[1], int(match[2])
    if not len(resume.positions) == len(matches) == len(topics):
        raise invalid("resume: not the id of an event of this address")
    return resume


def _topics(opened: ConnectionOpened) -> Iterator[Address]:
    """The topics that the connection is subscribed to, in the order of Codec.with_cursor."""
    address = opened.address
    yield Address(tenant=address.tenant)
    yield Address(tenant=address.tenant, agent=address.agent)
    yield Address(tenant=address.tenant, agent=address.agent, platform=address.platform)
    if address.HasField("conversation"):
        yield address
    if opened.user:
        yield Address(tenant=address.tenant, user=opened.user)


def make(clock: Clock) -> Dialect:
    """Create the dialect."""
    return Dialect(
        name="native events",
        connect=connect,
        rejection_codec=EVENTS,
        event_stream_paths=(Path("/v1/events"),),
    )
