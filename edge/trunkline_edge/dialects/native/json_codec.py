"""The native protocol in JSON; `json_schema` says what it looks like, docs/protocol.md shows it."""

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

#: A longer id is not returned with an error: no frame may have one.
_ID_MAX_CHARACTERS = 128
_TYPE_SHOWN_CHARACTERS = 64


class NativeJson(Codec):
    """The codec `trunkline.v1.json`."""

    name = "trunkline.v1.json"
    refuses_strangers_by_http = True

    def decode(self, payload: bytes, binary: bool = False) -> ClientFrame:
        """See Codec."""
        try:
            return ClientFrame(**_read(_decode(payload)))
        except UnicodeDecodeError:
            problem = "it is not UTF-8"
        except RecursionError:
            problem = "it is nested too deeply"
        except OverflowError:
            # The one conversion left to protobuf that can fail: an integer to a Struct's double.
            problem = "a number is out of range"
        except (msgspec.MsgspecError, ValueError) as error:
            problem = str(error)
        raise _refusal(payload, problem) from None

    def encode(self, frame: ServerFrame) -> bytes:
        """See Codec. A frame that is newer than this version of the contract has type `unknown`."""
        return _encode(_write(frame))


def _refusal(payload: bytes, problem: str) -> FrameRefused:
    """Why a payload was refused: reads it again, without a schema, for its `type` and `id`."""
    try:
        lenient: Any = msgspec.json.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        lenient = None
    fields = lenient if isinstance(lenient, dict) else {}
    frame_id = fields.get("id")
    if not isinstance(frame_id, str) or len(frame_id) > _ID_MAX_CHARACTERS:
        frame_id = ""
    frame_type = fields.get("type")
    if isinstance(frame_type, str) and frame_type not in _TYPES:
        entry = catalogue.UNKNOWN_FRAME_TYPE
        return FrameRefused(entry, entry.sentence(type=frame_type[:_TYPE_SHOWN_CHARACTERS]), frame_id)
    entry = catalogue.MALFORMED_FRAME
    return FrameRefused(entry, entry.sentence(problem=problem), frame_id)
