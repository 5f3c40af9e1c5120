"""The native protocol in JSON, see `json_schema` and docs/protocol.md."""

from __future__ import annotations

from typing import Any

import msgspec
from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame
from trunkline_runtime.free_form import UnfitValue

from trunkline_edge.dialects.codec import MAX_ID_CHARACTERS, Codec, FrameRefused, too_many_values
from trunkline_edge.dialects.json_text import (
    MAX_FRAME_VALUES,
    count_above,
    decode_json,
    replace_lone_surrogates,
    top_level_string,
)
from trunkline_edge.dialects.native.json_input import input_type, reader
from trunkline_edge.dialects.native.json_output import writer

_decode = msgspec.json.Decoder(input_type(ClientFrame.DESCRIPTOR)).decode
_read = reader(ClientFrame.DESCRIPTOR)
_write = writer(ServerFrame.DESCRIPTOR)
_encode = msgspec.json.Encoder().encode

_TYPES = frozenset(field.name for field in ClientFrame.DESCRIPTOR.fields)

_TYPE_SHOWN_CHARACTERS = 64
#: An error names the unknown field or the value at fault, which may be as long as the frame.
_PROBLEM_CHARACTERS = 512


class _Head(msgspec.Struct):
    """The fields of any frame that an error needs; all others are skipped."""

    id: Any = None
    type: Any = None


_decode_head = msgspec.json.Decoder(_Head).decode

#: Of larger frames over the rate limit, only the beginning is searched for an id.
_SMALL_BYTES = 1 << 16


class NativeJson(Codec):
    """The codec `trunkline.v1.json`."""

    name = "trunkline.v1.json"
    rejects_unauthorized_by_http = True

    def decode(self, payload: bytes, binary: bool = False) -> ClientFrame:
        """See Codec."""
        if values := count_above(payload, MAX_FRAME_VALUES):
            raise too_many_values(values, _head(payload)[0])
        try:
            return ClientFrame(**_read(_decode(payload)))
        except UnicodeDecodeError:
            problem = "not UTF-8"
        except RecursionError:
            problem = "nested too deeply"
        except OverflowError:
            # The only conversion in protobuf that can fail: an integer to a Struct's double.
            problem = "a number is out of range"
        except UnfitValue as unfit:
            problem, values = f"a free-form value {unfit.problem}", unfit.values
        except (msgspec.MsgspecError, ValueError) as error:
            # Lone surrogates are looked for only here, because all else in JSON is valid without them.
            if (repaired := replace_lone_surrogates(payload)) is not payload:
                return self.decode(repaired)
            problem = str(error)
        raise _refusal(payload, problem, values) from None

    def frame_id(self, payload: bytes, binary: bool = False) -> str:
        """See Codec."""
        return _head(payload)[0] if len(payload) <= _SMALL_BYTES else _short(top_level_string(payload, b"id"))

    def encode(self, frame: ServerFrame) -> bytes:
        """See Codec. A frame newer than this version of the contract gets the type `unknown`."""
        return _encode(_write(frame))


def _refusal(payload: bytes, problem: str, values: int) -> FrameRefused:
    """The error for an invalid payload, with its `type` and `id` if they can be read."""
    frame_id, frame_type = _head(payload)
    if frame_type not in _TYPES and frame_type is not None:
        entry = catalogue.UNKNOWN_FRAME_TYPE
        return FrameRefused(entry, entry.sentence(type=frame_type[:_TYPE_SHOWN_CHARACTERS]), frame_id)
    entry = catalogue.MALFORMED_FRAME
    return FrameRefused(entry, entry.sentence(problem=problem[:_PROBLEM_CHARACTERS]), frame_id, values)


def _head(payload: bytes) -> tuple[str, str | None]:
    """The frame's id, and its type if it has one; of JSON that is malformed, what its beginning shows."""
    try:
        head = decode_json(_decode_head, payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _short(top_level_string(payload, b"id")), None
    frame_type = head.type if isinstance(head.type, str) else None
    return _short(head.id), frame_type


def _short(frame_id: Any) -> str:
    """An id that an error may return; empty for any other value."""
    return frame_id if isinstance(frame_id, str) and len(frame_id) <= MAX_ID_CHARACTERS else ""
