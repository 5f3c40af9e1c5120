"""The codecs there are."""

from __future__ import annotations

from edge.dialects.codec import Codec
from edge.dialects.native_json import NativeJson
from edge.dialects.native_proto import NativeProto

#: By WebSocket subprotocol, in order of preference.
CODECS: dict[str, Codec] = {codec.name: codec for codec in (NativeJson(), NativeProto())}

#: For a client that asks for no subprotocol.
DEFAULT: Codec = CODECS[NativeJson.name]
