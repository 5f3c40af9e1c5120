"""The native protocol in JSON, see `json_schema` and docs/protocol.md."""

from __future__ import annotations

from typing import Any

import msgspec
from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame

from trunkline_edge.dialects.codec import Codec, FrameRefused
from trunkline_edge.dialects.native.json_input import input_type, reader
from trunkline_edge.dialects.native.json_output import writer

_decode = msgspec.json.Decoder(input_type(ClientFrame.DESCRIPTOR)).decode
_read = reader(ClientFrame.DESCRIPTOR)
_write = writer(ServerFrame.DESCRIPTOR)
_encode = msgspec.json.Encoder().encode

_TYPES = frozenset(field.name for field in ClientFrame.DESCRIPTOR.fields)

#: Errors do not return longer ids, which are invalid in any frame.
_ID_MAX_CHARACTERS = 128
_TYPE_SHOWN_CHARACTERS = 64


class NativeJson(Codec):
    """The codec `trunkline.v1.json`."""

    name = "trunkline.v1.json"
    rejects_unauthorized_by_http = True

    def decode(self, payload: bytes, binary: bool = False) -> ClientFrame:
        """See Codec."""
        try:
            return ClientFrame(**_read(_decode(payload)))
        except UnicodeDecodeError:
            problem = "not UTF-8"
        except RecursionError:
            problem = "nested too deeply"
        except OverflowError:
            # The only conversion in protobuf that can fail: an integer to a Struct's double.
            problem = "a number is out of range"
        except (msgspec.MsgspecError, ValueError) as error:
            problem = str(error)
        raise _refusal(payload, problem) from None

    def encode(self, frame: ServerFrame) -> bytes:
        """See Codec. A frame newer than this version of the contract gets the type `unknown`."""
        return _encode(_write(frame))


def _refusal(payload: bytes, problem: str) -> FrameRefused:
    """The error for an invalid payload, with its `type` and `id` if they can be read without the schema."""
    try:
        untyped: Any = msgspec.json.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        untyped = None
    fields = untyped if isinstance(untyped, dict) else {}
    frame_id = fields.get("id")
    if not isinstance(frame_id, str) or len(frame_id) > _ID_MAX_CHARACTERS:
        frame_id = ""
    frame_type = fields.get("type")
    if isinstance(frame_type, str) and frame_type not in _TYPES:
        entry = catalogue.UNKNOWN_FRAME_TYPE
        return FrameRefused(entry, entry.sentence(type=frame_type[:_TYPE_SHOWN_CHARACTERS]), frame_id)
    entry = catalogue.MALFORMED_FRAME
    return FrameRefused(entry, entry.sentence(problem=problem), frame_id)
