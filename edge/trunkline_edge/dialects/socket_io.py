"""Socket.IO 5 on Engine.IO 4 around another codec: its messages are the one argument of the event `message`.

https://socket.io/docs/v4/socket-io-protocol/. The transport removes and adds nothing but the separators of
Engine.IO's packets: payloads here are whole packets of type `message`, which begin with `4`.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, replace

import msgspec
from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import ClientFrame, DisconnectFrame, ErrorFrame, ServerFrame

from trunkline_edge.dialects.codec import (
    Codec,
    Decoded,
    DirectReply,
    FrameRefused,
    Framing,
    SwitchCodec,
    too_many_values,
)
from trunkline_edge.dialects.json_text import MAX_FRAME_VALUES, count_above, decode_json

#: Follows each packet. JSON text does not contain it, and decoding rejects text that does.
SEPARATOR = b"\x1e"

#: Bound of the acknowledgements kept per connection: the default number of its requests in flight.
_MAX_ACKS = 64
_MAX_NAMESPACE_BYTES = 128

#: An event's namespace, the number by which the client wants it acknowledged, and its arguments.
_EVENT = re.compile(rb"42(?:(/[^,]*),)?(\d{1,15})?(\[.*)", re.DOTALL)
_CONNECT = re.compile(rb"40(/[^,]*)?(?:,|$|(?=\{))")

#: Codes of errors that codecs raise, and of the rate limiter. Others without an id answer frames that the
#: edge sent for the client.
_OWN_ERRORS = frozenset(
    each.code
    for each in (
        catalogue.INVALID_ARGUMENT,
        catalogue.MALFORMED_FRAME,
        catalogue.RATE_LIMITED,
        catalogue.UNEXPECTED_FRAME,
    )
)

# One value beside the name is a whole message, whatever it is.
_read_arguments = msgspec.json.Decoder(tuple[str, msgspec.Raw]).decode
_read_string = msgspec.json.Decoder(str).decode
_write = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class SocketIo(Codec):
    """A codec's frames as Socket.IO events, in the one namespace `/`.

    An event that asks for an acknowledgement gets it once its message is on disk. Errors for which the inner
    codec has no frame are sent as the event `error`.
    """

    framing = Framing.PACKETS
    rejects_by_http = True

    inner: Codec
    #: Ids of the latest messages that want an acknowledgement, with its number; oldest first.
    acks: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        """Behave towards the core like the inner codec."""
        for name in ("name", "streaming", "assigns_ids", "reports_delivery"):
            object.__setattr__(self, name, getattr(self.inner, name))

    # From the client

    def decode(self, payload: bytes, binary: bool = False) -> Decoded:
        """See Codec. Drops binary payloads: the event that they are attached to was refused."""
        if binary:
            return None
        match payload[1:2]:
            case b"0":
                return _connect(payload)
            case b"1":
                return ClientFrame(disconnect=DisconnectFrame()) if payload[2:3] != b"/" else None
            case b"2":
                return self._event(payload)
            case b"3":
                return None
            case b"5" | b"6":
                raise _malformed("binary attachments are not supported; send base64, or a link")
        raise _malformed("this is no Socket.IO packet of a client")

    def _event(self, payload: bytes) -> Decoded:
        if values := count_above(payload, MAX_FRAME_VALUES + 2):
            raise too_many_values(values)
        event = _EVENT.fullmatch(payload)
        if event is None:
            raise _malformed("the event cannot be read")
        namespace, number, arguments = event.groups()
        if namespace not in (None, b"/"):
            raise _malformed("there is no namespace but /")
        decoded = self.inner.decode(_message(arguments))
        return self._answered(decoded, int(number)) if number else self._wrapped(decoded)

    def _wrapped(self, decoded: Decoded, ack: bytes = b"") -> Decoded:
        if isinstance(decoded, SwitchCodec):
            rest = self._wrapped(decoded.decoded, ack)
            assert not isinstance(rest, SwitchCodec)
            return SwitchCodec(replace(self, inner=decoded.codec), rest)
        if isinstance(decoded, DirectReply):
            return DirectReply(_emit(decoded.payload) + ack)
        return DirectReply(ack) if decoded is None and ack else decoded

    def _answered(self, decoded: Decoded, number: int) -> Decoded:
        """Acknowledge the event by its number: a message once it is stored, anything else at once."""
        frame = decoded.decoded if isinstance(decoded, SwitchCodec) else decoded
        if not isinstance(frame, ClientFrame):
            return self._wrapped(decoded, _ack(number))
        if not frame.message.id:
            # The core's own id would not be known here.
            frame.message.id = f"=!{uuid.uuid4().hex}"
        inner = decoded.codec if isinstance(decoded, SwitchCodec) else self.inner
        acks = (*self.acks, (frame.message.id, number))[-_MAX_ACKS:]
        return SwitchCodec(SocketIo(inner, acks), frame)

    # To the client

    def encode(self, frame: ServerFrame) -> bytes:
        """See Codec. A frame may be several packets."""
        match frame.WhichOneof("frame"):
            case "connected":
                sid = _write({"sid": frame.connected.connection_id})
                return b"40" + sid + SEPARATOR + self._emit_inner(frame)
            case "ack":
                numbers = (number for ident, number in self.acks if ident == frame.ack.id)
                return self._emit_inner(frame) + b"".join(map(_ack, numbers))
            case "error":
                return self._emit_inner(frame) or _error(frame.error)
            case "closing":
                # Clients reconnect unless they receive a disconnect packet.
                is_final = frame.closing.reason == catalogue.SUPERSEDED.code
                return self._emit_inner(frame) + (b"41" + SEPARATOR if is_final else b"")
        return self._emit_inner(frame)

    def _emit_inner(self, frame: ServerFrame) -> bytes:
        payload = self.inner.encode(frame)
        return _emit(payload) if payload else b""


def _connect(payload: bytes) -> DirectReply | None:
    """Reject all namespaces but `/`, whose connection was confirmed with the first packet."""
    connect = _CONNECT.match(payload)
    if connect is None:
        raise _malformed("the connect packet cannot be read")
    namespace = connect[1] or b"/"
    if namespace == b"/":
        return None
    if (
        len(namespace) > _MAX_NAMESPACE_BYTES
        or not namespace.isascii()
        or not namespace.decode().isprintable()
    ):
        raise _malformed("the namespace is invalid")
    return DirectReply(b"44" + namespace + b',{"message":"There is no namespace but /"}' + SEPARATOR)


def _message(arguments: bytes) -> bytes:
    """The argument of the event `message`: an object, or a string that holds one."""
    try:
        name, argument = decode_json(_read_arguments, arguments)
        text = bytes(argument)
        if name == "message":
            return decode_json(_read_string, text).encode() if text.startswith(b'"') else text
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise _malformed("an event must be an array of the name `message` and one value") from None
    raise _malformed("the only event is `message`")


def _emit(payload: bytes) -> bytes:
    return b'42["message",' + payload + b"]" + SEPARATOR


def _ack(number: int) -> bytes:
    return b"43%d[]" % number + SEPARATOR


def _error(error: ErrorFrame) -> bytes:
    if not error.id and error.code not in _OWN_ERRORS:
        return b""
    arguments = {"code": error.code, "message": error.message}
    return b'42["error",' + _write(arguments) + b"]" + SEPARATOR


def _malformed(problem: str) -> FrameRefused:
    return FrameRefused(catalogue.MALFORMED_FRAME, problem)
