"""The native protocol as server-sent events, to the client only: `/v1/events`, see docs/protocol.md.

The format is that of https://html.spec.whatwg.org/multipage/server-sent-events.html. All who hear a
topic are written the same events, so these have no ids of their own; what a client is written at a time
ends with the `id` of where it then stands in all its topics, which it sends back to go on from there.
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
    positions_of,
    wish_of,
)
from trunkline_edge.dialects.paths import Path

#: With which a browser, and whatever acts like one, comes back.
LAST_EVENT_ID = "last-event-id"

#: When a client is to come back after its connection broke: a time of its own within these, so that not
#: all come at once.
RETRY_MS = range(1000, 3000)

_STAND = re.compile(r"([^\s~]{0,64})\.(\d{1,20})", re.ASCII)
_MAX_SEQ = 2**64 - 1


class NativeEvents(Codec):
    """The codec `trunkline.v1.events`: an event is a frame of `trunkline.v1.json`, named by its type."""

    name = "trunkline.v1.events"
    framing = Framing.NONE
    marks_standing = True
    refuses_by_http = True

    def decode(self, payload: bytes, binary: bool = False) -> ClientFrame | None:
        """See Codec. Its clients have no way to say anything."""
        return None

    def encode(self, frame: ServerFrame) -> bytes:
        """See Codec. JSON has no line breaks in it."""
        kind = frame.WhichOneof("frame") or "unknown"
        retry_ms = _retry_ms(frame)
        retry = b"retry: %d\n" % retry_ms if retry_ms else b""
        return b"event: %b\n%bdata: %b\n\n" % (kind.encode(), retry, DEFAULT.encode(frame))

    def marked(self, data: bytes, marks: Sequence[bytes]) -> bytes:
        """See Codec. The id becomes part of the last event, so that a client has both or none."""
        return b"".join((data[:-1], b"id: ", b"~".join(marks), b"\n\n"))

    def heartbeat(self) -> bytes:
        """See Codec: a comment."""
        return b": ping\n\n"


def _retry_ms(frame: ServerFrame) -> int:
    if frame.HasField("connected"):
        return RETRY_MS[crc32(frame.connected.connection_id.encode()) % len(RETRY_MS)]
    return frame.closing.reconnect_after_ms


EVENTS = NativeEvents()


def connect(request: ConnectRequest) -> ConnectPlan:
    """See Dialect. What a browser sends back of itself is newer than what the URL says."""
    wish, resume = wish_of(request, EVENTS)
    resume = request.headers.get(LAST_EVENT_ID, "") or resume
    if resume == RESUME_BY_DELIVERY:
        wish.opened.resume.delivered = True
    elif "." in resume:
        wish.opened.resume.CopyFrom(_stood(resume, wish.opened))
    elif resume:
        wish.opened.resume.CopyFrom(positions_of(resume))
    return wish


def _stood(last_id: str, opened: ConnectionOpened) -> ResumeFrame:
    """The positions in an event's id. Raises Refused INVALID_ADDRESS."""
    found = [_STAND.fullmatch(stand) for stand in last_id.split("~")]
    topics = list(_topics(opened))
    resume = ResumeFrame()
    for address, stand in zip(topics, found, strict=False):
        if stand is not None and int(stand[2]) <= _MAX_SEQ:
            position = resume.positions.add(address=address).position
            position.epoch, position.seq = stand[1], int(stand[2])
    if not len(resume.positions) == len(found) == len(topics):
        raise invalid("resume: it is no id of an event of this address")
    return resume


def _topics(opened: ConnectionOpened) -> Iterator[Address]:
    """Those that the connection hears, in the order of Codec.marked."""
    address = opened.address
    yield Address(tenant=address.tenant)
    yield Address(tenant=address.tenant, agent=address.agent)
    yield Address(tenant=address.tenant, agent=address.agent, platform=address.platform)
    if address.HasField("conversation"):
        yield address
    if opened.user:
        yield Address(tenant=address.tenant, user=opened.user)


def make(clock: Clock) -> Dialect:
    """The dialect."""
    return Dialect(name="native events", connect=connect, refusing=EVENTS, streams=(Path("/v1/events"),))
