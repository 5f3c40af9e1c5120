"""Every client frame of the contract, with ids of the sending tenant or of the other one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict
from trunkline.v1.address_pb2 import CONVERSATION_KIND_GROUP, Conversation, TopicPosition
from trunkline.v1.frame_pb2 import (
    AuthFrame,
    CancelFrame,
    ClientFrame,
    DeliveredFrame,
    DisconnectFrame,
    EditFrame,
    HistoryFrame,
    MessageFrame,
    PingFrame,
    ReadFrame,
    RecallFrame,
    ResumeFrame,
    SignalFrame,
    SubscribeFrame,
    UnsubscribeFrame,
)
from trunkline.v1.message_pb2 import Part, TextPart

from tests.e2e.grpc_backend import address
from tests.e2e.twin_tenants import USER, TwinTenant

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

KINDS = [field.name for field in ClientFrame.DESCRIPTOR.oneofs_by_name["frame"].fields]


def _parts(by: TwinTenant) -> list[Part]:
    return [Part(text=TextPart(text=by.words))]


def _group(ident: str) -> Conversation:
    return Conversation(kind=CONVERSATION_KIND_GROUP, id=ident)


def _signal(by: TwinTenant) -> SignalFrame:
    frame = SignalFrame(name="typing")
    frame.data.update({"words": by.words})
    return frame


#: By kind: frame that tenant `by` sends with the ids of tenant `of`, its own or the other one's.
FRAMES: dict[str, Callable[[TwinTenant, TwinTenant, str], Message]] = {
    "message": lambda by, of, ident: MessageFrame(
        id=ident, parts=_parts(by), reply_to=of.message_id, attributes={"words": by.words}
    ),
    "ping": lambda by, of, ident: PingFrame(id=ident),
    "subscribe": lambda by, of, ident: SubscribeFrame(
        id=ident, conversation=_group("side"), position=of.position
    ),
    "unsubscribe": lambda by, of, ident: UnsubscribeFrame(id=ident, conversation=_group("side")),
    "history": lambda by, of, ident: HistoryFrame(id=ident, after=of.position),
    "signal": lambda by, of, ident: _signal(by),
    "read": lambda by, of, ident: ReadFrame(position=of.position, user=USER),
    "resume": lambda by, of, ident: ResumeFrame(
        positions=[TopicPosition(address=address(f"{of.name}/echo/web/group:room"), position=of.position)],
        delivered=True,
    ),
    "disconnect": lambda by, of, ident: DisconnectFrame(),
    "cancel": lambda by, of, ident: CancelFrame(id=ident, message_id=of.open_id),
    "edit": lambda by, of, ident: EditFrame(id=ident, message_id=of.message_id, parts=_parts(by)),
    "recall": lambda by, of, ident: RecallFrame(id=ident, message_id=of.message_id),
    "delivered": lambda by, of, ident: DeliveredFrame(
        position=of.position, address=address(f"{of.name}/echo/web/group:room")
    ),
    "auth": lambda by, of, ident: AuthFrame(id=ident, token=of.signer.token(USER)),
}


def frame_of(kind: str, by: TwinTenant, of: TwinTenant, ident: str) -> ClientFrame:
    """Return a frame of this kind, sent by `by` with the ids of `of`."""
    return ClientFrame(**{kind: FRAMES[kind](by, of, ident)})


def encoded(frame: ClientFrame, language: str) -> str | bytes:
    """Encode a frame as `trunkline.v1.json` or `trunkline.v1.proto`."""
    if language.endswith("proto"):
        return frame.SerializeToString()
    kind = frame.WhichOneof("frame") or ""
    fields = MessageToDict(getattr(frame, kind), preserving_proto_field_name=True)
    return json.dumps({"type": kind, **_as_json(fields)})


def _as_json(value: Any, name: str = "") -> Any:
    """Convert protobuf's JSON to the protocol's JSON."""
    match value:
        case dict():
            return {key: _as_json(each, key) for key, each in value.items()}
        case list() if name == "parts":
            return [{"type": kind, **_as_json(fields)} for each in value for kind, fields in each.items()]
        case list():
            return [_as_json(each) for each in value]
        case str() if name == "seq":
            return int(value)
        case str() if name == "kind":
            return value.rpartition("_")[2].lower()
    return value
