"""Frames of almost a megabyte that take far longer to build than to read."""

from __future__ import annotations

from google.protobuf.struct_pb2 import ListValue, Struct, Value
from trunkline.v1.frame_pb2 import ClientFrame, MessageFrame, SignalFrame

SIZE = 900_000

#: CPU time to refuse one of them. Most take a tenth; building one takes up to three seconds.
MAX_CPU_S = 0.15


def repeated(item: bytes, separator: bytes = b",") -> bytes:
    """The item, repeated up to SIZE."""
    return separator.join([item] * (SIZE // (len(item) + len(separator))))


def keys(value: bytes) -> bytes:
    """The members of an object with different names."""
    return b",".join(b'"%x":%b' % (number, value) for number in range(SIZE // (len(value) + 9)))


#: JSON values that stand in `data`, `message`, `message_segment` or the like.
VALUES: dict[str, bytes] = {
    "nested arrays": b'{"a":[%b]}' % repeated(b"[" * 10 + b"1" + b"]" * 10),
    "nested objects": b'{"a":[%b]}' % repeated(b'{"a":{"a":{"a":1}}}'),
    "many keys": b"{%b}" % keys(b"1"),
    "numbers": b'{"a":[%b]}' % repeated(b"1"),
    "empty objects": b'{"a":[%b]}' % repeated(b"{}"),
    "strings": b'{"a":[%b]}' % repeated(b'","'),
    "deep arrays": b'{"a":%b%b}' % (b"[" * (SIZE // 2), b"]" * (SIZE // 2)),
}

PART = b'{"type":"custom","name":"n","data":%b}'

#: Frames of the native protocol in JSON, with the id that the error must name.
NATIVE_JSON: dict[str, tuple[bytes, str]] = {
    **{f"signal, {name}": (b'{"type":"signal","name":"n","data":%b}' % v, "") for name, v in VALUES.items()},
    **{
        f"custom part, {name}": (b'{"type":"message","id":"m1","parts":[%b]}' % (PART % v), "m1")
        for name, v in VALUES.items()
    },
    "parts": (b'{"type":"message","id":"m1","parts":[%b]}' % repeated(b'{"type":"text","text":""}'), "m1"),
    "parts before the id": (b'{"type":"edit","parts":[%b],"id":"m1"}' % repeated(b'{"type":"text"}'), "m1"),
    "unknown keys": (b'{"type":"message","id":"m1",%b}' % keys(b"1"), "m1"),
    "unknown keys in a part": (
        b'{"type":"message","id":"m1","parts":[{"type":"text",%b}]}' % keys(b"1"),
        "m1",
    ),
    "attributes": (b'{"type":"message","id":"m1","attributes":{%b}}' % keys(b'"1"'), "m1"),
    "positions": (b'{"type":"resume","positions":[%b]}' % repeated(b'{"position":{"seq":1}}'), ""),
    "an unknown type": (b'{"type":"x","id":"m1","a":[%b]}' % repeated(b"[[]]"), "m1"),
    "a list": (b"[%b]" % repeated(b"1"), ""),
    "keys, then cut": (b'{"type":"message","id":"m1",%b' % keys(b"1"), "m1"),
}


def _many_values(value: Value) -> Struct:
    count = SIZE // (value.ByteSize() + 2)
    return Struct(fields={"a": Value(list_value=ListValue(values=[value] * count))})


def _many_keys() -> Struct:
    return Struct(fields={f"{number:x}": Value(bool_value=True) for number in range(SIZE // 14)})


_STRUCTS = {
    "empty values": _many_values(Value()),
    "numbers": _many_values(Value(number_value=1)),
    "nested lists": _many_values(Value(list_value=ListValue(values=[Value(list_value=ListValue())]))),
    "many keys": _many_keys(),
}

#: The same in protobuf.
NATIVE_PROTO: dict[str, tuple[bytes, str]] = {
    name: (frame.SerializeToString(), frame_id)
    for name, frame, frame_id in [
        *(
            (f"signal, {name}", ClientFrame(signal=SignalFrame(name="n", data=data)), "")
            for name, data in _STRUCTS.items()
        ),
        *(
            (
                f"custom part, {name}",
                ClientFrame(message=MessageFrame(id="m1", parts=[{"custom": {"data": data}}])),  # type: ignore[list-item]
                "m1",
            )
            for name, data in _STRUCTS.items()
        ),
        ("parts", ClientFrame(message={"id": "m1", "parts": [{}] * (SIZE // 2)}), "m1"),
        ("positions", ClientFrame(resume={"positions": [{}] * (SIZE // 2)}), ""),
        (
            "attributes",
            ClientFrame(message={"id": "m1", "attributes": {f"{n:x}": "" for n in range(SIZE // 12)}}),
            "m1",
        ),
    ]
}


def in_dialect(template: bytes) -> dict[str, bytes]:
    """Frames with each of VALUES in a place of the template."""
    return {name: template % value for name, value in VALUES.items()}
