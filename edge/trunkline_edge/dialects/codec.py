"""The interface of codecs: pure translations between a client's WebSocket messages and frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Entry, Refused
from trunkline.v1.frame_pb2 import ClientFrame, ClosingFrame, ServerFrame
from trunkline.v1.message_pb2 import MediaPart

from trunkline_edge.dialects.json_text import MAX_FRAME_VALUES, count_above

#: Errors do not return longer ids, which are invalid in any frame.
MAX_ID_CHARACTERS = 128

#: Values that a frame may have at no cost beside its bytes, such as those of a message with a dozen parts.
FREE_VALUES = 64

#: A smaller frame cannot have more: a value takes at least two bytes.
SMALL_FRAME_BYTES = 2 * FREE_VALUES


class Framing(Enum):
    """Wrapping of a payload on its way to the client."""

    TEXT = 0
    BINARY = 1
    #: The payload is written unchanged.
    NONE = 2
    #: One chunk of an HTTP body with chunked transfer encoding.
    CHUNKS = 3
    #: The payload is one or more packets of Engine.IO, each followed by a separator; see its transports.
    PACKETS = 4


class StreamingMode(Enum):
    """Form in which clients receive a message that is still open."""

    #: The open message, `delta` frames, and the `change` that ends it.
    DELTAS = 0
    #: A `message` with the text so far, once per rollup window and at the end.
    SNAPSHOTS = 1
    #: One `message` when it ends.
    COMPLETE = 2


class DirectReply(NamedTuple):
    """A reply that needs no router; `payload` is one WebSocket message to write at once."""

    payload: bytes


class UploadReference(NamedTuple):
    """A media part of a message that names an upload; the content takes the place of the name."""

    part: MediaPart
    tenant: str
    key: str


class UsesUploads(NamedTuple):
    """A frame with references to uploads: handle it once each part has its content.

    The core rejects a reference to another tenant's upload.
    """

    frame: ClientFrame
    references: Sequence[UploadReference]


class SwitchCodec(NamedTuple):
    """Use another codec for the client from here on, then handle `decoded`.

    Of the two codecs' streaming modes both are DELTAS, or neither is.
    """

    codec: Codec
    decoded: ClientFrame | DirectReply | UsesUploads | None


Decoded = ClientFrame | DirectReply | UsesUploads | SwitchCodec | None


class Codec(ABC):
    """A pure translation between a client's WebSocket messages and the contract's frames.

    A codec holds no state of a connection; the frames carry it, or the dialect chooses among several codecs.
    Only an Exchange, which no other codec equals, has some. Equal codecs share their encodings: a message to
    a thousand connections is encoded once per distinct codec.
    """

    #: Shown to operators; for a native codec the WebSocket subprotocol.
    name: str
    framing = Framing.TEXT
    streaming = StreamingMode.DELTAS
    #: Requests may come without an id; the core then assigns a unique one.
    assigns_ids = False
    #: The core reports to the router as `delivered` what the client has received. Its user must be known.
    reports_delivery = False
    #: Each write ends with a cursor to resume from, see `with_cursor`.
    appends_cursor = False
    #: Every refused handshake gets an HTTP status rather than a last frame.
    rejects_by_http = False
    #: Handshakes refused with 401 or 403 get that HTTP status.
    rejects_unauthorized_by_http = False
    #: The codec is an Exchange: `subscribed` is called, each delta names its message, and the client is
    #: closed if no router is reached for long.
    is_exchange = False

    @abstractmethod
    def decode(self, payload: bytes, binary: bool = False) -> Decoded:
        """Decode one WebSocket message, text (as UTF-8 bytes) or binary; None if it needs no action.

        Raises FrameRefused for an invalid message, and nothing else whatever the bytes.
        """

    def frame_id(self, payload: bytes, binary: bool = False) -> str:
        """The frame's own id if a bounded look at the payload finds it, without decoding; else empty."""
        return ""

    def count_values(self, payload: bytes, decoded: Decoded) -> int:
        """Count the values in a decoded message; at most FREE_VALUES are reported as 0."""
        return count_above(payload, FREE_VALUES)

    @abstractmethod
    def encode(self, frame: ServerFrame) -> bytes:
        """Encode any valid frame as the payload of one WebSocket message; empty to send none."""

    def subscribed(self) -> bytes:
        """The payload to send to an exchange once it is subscribed to its topics; empty for none."""
        return b""

    def heartbeat(self) -> bytes:
        """The payload to send with each WebSocket ping; empty for none."""
        return b""

    def with_cursor(self, data: bytes, positions: Sequence[bytes]) -> bytes:
        """Append the cursor that a client has once it received `data`, one or more whole payloads.

        `positions` are `epoch.seq` of each topic that it is subscribed to from the start, in the order
        tenant, agent, platform, conversation, user.
        """
        return data

    def close_code(self, closing: ClosingFrame) -> int:
        """The WebSocket close code for a `closing` frame."""
        return closing.code


class FrameRefused(Exception):
    """A WebSocket message is not a valid frame; `entry` is of the catalogue, `str()` its text.

    `frame_id` is the frame's own id if it could be read, so that the client can match the error. `values`
    are those that the message has at least, if it was refused for their number.
    """

    def __init__(self, entry: Entry, sentence: str, frame_id: str = "", values: int = 0) -> None:
        super().__init__(sentence)
        self.entry = entry
        self.frame_id = frame_id
        self.values = values

    @property
    def reason(self) -> Refused:
        """The refusal to report to the client. Its text may be the dialect's own."""
        return Refused(self.entry, str(self))


def too_many_values(values: int, frame_id: str = "") -> FrameRefused:
    """The refusal of a frame with more than MAX_FRAME_VALUES values."""
    entry = catalogue.INVALID_ARGUMENT
    problem = f"has {values} values; at most {MAX_FRAME_VALUES} are allowed"
    return FrameRefused(entry, entry.sentence(field="frame", problem=problem), frame_id, values)
