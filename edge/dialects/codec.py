"""What a codec is."""

from __future__ import annotations

from typing import Protocol

from trunkline.v1.catalogue import Entry
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame


class Codec(Protocol):
    """A pure translation between a client's WebSocket messages and the contract's frames.

    One instance serves all connections; it holds no state of any of them.
    """

    #: The WebSocket subprotocol, and the name that operators see.
    name: str
    #: Frames are written as binary WebSocket messages rather than text.
    binary: bool

    def decode(self, payload: bytes) -> ClientFrame:
        """The frame in one WebSocket message, text or binary (text as its UTF-8 bytes).

        Raises FrameRefused where there is none; never anything else, whatever the bytes.
        """

    def encode(self, frame: ServerFrame) -> bytes:
        """The payload of the WebSocket message for a frame; any valid frame can be encoded."""


class FrameRefused(Exception):
    """A WebSocket message is no valid frame; `entry` of the catalogue says why, `str()` is its text.

    `frame_id` is the frame's own id where it could be read, for the client to match the error with.
    """

    def __init__(self, entry: Entry, sentence: str, frame_id: str = "") -> None:
        super().__init__(sentence)
        self.entry = entry
        self.frame_id = frame_id
