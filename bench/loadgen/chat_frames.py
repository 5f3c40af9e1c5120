"""Frames of a chat client in each encoding: encode messages, classify what the server sends."""

import json

from trunkline.v1 import frame_pb2, message_pb2

from bench.loadgen.chat_text import chat_text
from bench.loadgen.websocket_frames import BINARY, TEXT, client_frame, next_frame

JSON, PROTO = "trunkline.v1.json", "trunkline.v1.proto"
CLOSING_TAG = frame_pb2.ServerFrame.CLOSING_FIELD_NUMBER << 3 | 2


def message_frame(number: int, due_ns: int, subprotocol: str | None) -> bytes:
    """Encode a chat text as a complete WebSocket frame; plain text if there is no subprotocol."""
    text = chat_text(number, due_ns)
    if subprotocol == JSON:
        frame = f'{{"type":"message","id":"{number}","parts":[{{"type":"text","text":"{text}"}}]}}'
        return client_frame(frame.encode(), TEXT)
    if subprotocol == PROTO:
        part = message_pb2.Part(text=message_pb2.TextPart(text=text))
        message = frame_pb2.MessageFrame(id=str(number), parts=[part])
        return client_frame(frame_pb2.ClientFrame(message=message).SerializeToString(), BINARY)
    return client_frame(text.encode(), TEXT)


def is_answer(payload: bytes, subprotocol: str | None) -> bool:
    """Return whether a payload is the agent's reply, rather than an ack or the client's own message."""
    if subprotocol == JSON:
        return b'"role":"agent"' in payload
    if subprotocol == PROTO:
        return frame_pb2.ServerFrame.FromString(payload).message.author.role == message_pb2.ROLE_AGENT
    return True


def is_closing(frame: bytes, subprotocol: str | None) -> bool:
    """Return whether a WebSocket frame that begins with these bytes is a `closing` frame."""
    if subprotocol == JSON:
        return b'{"type":"closing"' in frame
    header = next_frame(frame, 0) if subprotocol == PROTO else None
    return header is not None and frame[header[1]] == CLOSING_TAG


def closing_reason(payload: bytes, subprotocol: str | None) -> str:
    """Return the reason in the payload of a `closing` frame."""
    if subprotocol == PROTO:
        return frame_pb2.ServerFrame.FromString(payload).closing.reason
    return str(json.loads(payload)["reason"])


def is_rejection(payload: bytes, subprotocol: str | None) -> bool:
    """Return whether a payload is an `error` or `closing` frame."""
    if subprotocol == JSON:
        return payload.startswith((b'{"type":"error"', b'{"type":"closing"'))
    if subprotocol == PROTO:
        return frame_pb2.ServerFrame.FromString(payload).WhichOneof("frame") in ("error", "closing")
    return False
