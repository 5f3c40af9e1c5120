"""Frames of one WebSocket client, parsed one at a time."""

from __future__ import annotations

from typing import NamedTuple

from websockets.exceptions import ProtocolError
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from trunkline_edge.transport.fragments import FragmentedMessage, is_utf8
from trunkline_edge.transport.frame_splitter import FramePart, FrameSplitter, InvalidLength

#: A message: its payload, and whether it is binary.
Message = tuple[bytes, bool]


class OtherFrame(NamedTuple):
    """A frame that completes no message, or the received part of one."""

    #: Bytes to charge for; None if the frame is charged for with its message, or was before.
    charge_bytes: int | None
    #: The answer to a ping, to be written; empty for other frames.
    pong: bytes


class IncomingFrames:
    """Parses the frames of a client, by `websockets`' sans-I/O core unless they are whole messages.

    A violation of RFC 6455 fails the protocol, which then has `eof_sent`: nothing more may be parsed.
    Once a close was sent, all frames but the client's own close are dropped.
    """

    __slots__ = ("_fragments", "_is_parsing", "_protocol", "_splitter")

    def __init__(self, protocol: ServerProtocol) -> None:
        self._protocol = protocol
        self._splitter = FrameSplitter()
        #: The unfinished message.
        self._fragments: FragmentedMessage | None = None
        #: The frame of which a part was received is parsed, not dropped.
        self._is_parsing = False

    def feed(self, data: bytes) -> None:
        """Add bytes from the client."""
        self._splitter.feed(data)

    def clear(self) -> None:
        """Drop what was not parsed."""
        self._splitter.clear()

    def next_event(self) -> Message | OtherFrame | None:
        """Parse the next frame; None if it needs more bytes."""
        protocol = self._protocol
        if protocol.current_size is None and protocol.state is OPEN:
            message = self._splitter.next_message(protocol.max_message_size or 0)
            if message is not None:
                return self._checked(*message)
        try:
            part = self._splitter.next_part()
        except InvalidLength:
            self._fail(CloseCode.PROTOCOL_ERROR, "64-bit length with its top bit set")
            return OtherFrame(None, b"")
        return None if part is None else self._parse(part)

    def _parse(self, part: FramePart) -> Message | OtherFrame:
        protocol = self._protocol
        if part.is_start:
            self._is_parsing = protocol.state is OPEN or part.opcode == Opcode.CLOSE
        is_charged = part.is_start and not part.completes_message
        charge = (len(part.data) if part.is_control else 0) if is_charged else None
        if not self._is_parsing:
            return OtherFrame(charge, b"")
        if part.opcode == Opcode.CLOSE:
            # A close between the fragments of a message is no error: the message is dropped.
            protocol.current_size = None
        protocol.receive_data(part.data)
        for event in protocol.events_received():
            assert isinstance(event, Frame)
            if event.opcode is Opcode.PING:
                return OtherFrame(charge, b"".join(protocol.data_to_send()))
            message = self._message(event)
            if message is not None:
                return message
        return OtherFrame(charge, b"")

    def _message(self, frame: Frame) -> Message | OtherFrame | None:
        """Return the message that a frame completes; None if it completes none."""
        opcode = frame.opcode
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            binary = opcode is Opcode.BINARY
            if frame.fin:
                return self._checked(bytes(frame.data), binary)
            self._fragments = FragmentedMessage(binary)
        message = self._fragments
        if message is None or opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return None
        if not message.add(frame.data, frame.fin):
            return self._fail_utf8()
        if not frame.fin:
            return None
        self._fragments = None
        return bytes(message.payload), message.binary

    def _checked(self, payload: bytes, binary: bool) -> Message | OtherFrame:
        return (payload, binary) if binary or is_utf8(payload) else self._fail_utf8()

    def _fail_utf8(self) -> OtherFrame:
        self._fail(CloseCode.INVALID_DATA, "text is not UTF-8")
        return OtherFrame(None, b"")

    def _fail(self, code: CloseCode, problem: str) -> None:
        self._protocol.fail(code, problem)
        self._protocol.parser_exc = ProtocolError(problem)
