"""What a codec is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from trunkline.v1.catalogue import Entry
from trunkline.v1.frame_pb2 import ClientFrame, ClosingFrame, ServerFrame


class Framing(Enum):
    """What is put around a payload on its way to the client."""

    TEXT = 0
    BINARY = 1
    #: The payload is written as it is.
    NONE = 2


class StreamingMode(Enum):
    """How clients are shown a message that is still open."""

    #: As it comes: the open message, `delta` frames, and the `change` that ends it.
    DELTAS = 0
    #: The core adds up what was said: `message` with the text so far, for each window, and when it ends.
    SO_FAR = 1
    #: Not at all: it comes as one `message` when it ends.
    WHOLE = 2


class DirectReply(NamedTuple):
    """What a client is told at once; the router is not asked. The payload is one WebSocket message."""

    payload: bytes


class SwitchCodec(NamedTuple):
    """From here on the client is spoken to by another codec; and what it said, if anything.

    The `replies` of both are DELTAS, or of neither.
    """

    codec: Codec
    said: ClientFrame | DirectReply | None


Decoded = ClientFrame | DirectReply | SwitchCodec | None


class Codec(ABC):
    """A pure translation between a client's WebSocket messages and the contract's frames.

    It holds no state of any connection; what is particular to one is told by the contract's frames, or
    by which of several codecs its dialect gave it. Codecs that are equal share what they encode: a
    message to a thousand connections is encoded once for each codec among them.
    """

    #: What operators see; of a native codec the WebSocket subprotocol.
    name: str
    framing = Framing.TEXT
    replies = StreamingMode.DELTAS
    #: The dialect's requests may carry no ids of their own; the core gives those one that is unique.
    gives_ids = False
    #: What the client has taken is told to the router as `delivered`; its user must be known.
    tells_delivered = False
    #: What is written to the client ends with where it then stands, to go on from: see `marked`.
    marks_standing = False
    #: A client that may not connect is answered by an HTTP status rather than by a last frame.
    refuses_by_http = False
    #: At least one that does not prove who it is, or that may not connect, is: by 401 or 403.
    refuses_strangers_by_http = False

    @abstractmethod
    def decode(self, payload: bytes, binary: bool = False) -> Decoded:
        """What one WebSocket message says, text (as its UTF-8 bytes) or binary; None where it says nothing.

        Raises FrameRefused where it is not valid; never anything else, whatever the bytes.
        """

    @abstractmethod
    def encode(self, frame: ServerFrame) -> bytes:
        """The payload of the WebSocket message for a frame, any valid one; empty where there is none."""

    def heartbeat(self) -> bytes:
        """What is sent beside each ping of the WebSocket protocol; empty for nothing."""
        return b""

    def marked(self, data: bytes, marks: Sequence[bytes]) -> bytes:
        """What is written, one or more whole payloads, with where the client stands once it has taken them.

        That is `epoch.seq` for each topic that it hears from the start, in the order tenant, agent,
        platform, conversation, user.
        """
        return data

    def close_code(self, closing: ClosingFrame) -> int:
        """The code with which the WebSocket is closed."""
        return closing.code


class FrameRefused(Exception):
    """A WebSocket message is no valid frame; `entry` of the catalogue says why, `str()` is its text.

    `frame_id` is the frame's own id where it could be read, for the client to match the error with.
    """

    def __init__(self, entry: Entry, sentence: str, frame_id: str = "") -> None:
        super().__init__(sentence)
        self.entry = entry
        self.frame_id = frame_id
