"""Frames for a session under test, and what its effects emit."""

from __future__ import annotations

from typing import Any

from trunkline.v1.address_pb2 import TopicPosition
from trunkline.v1.frame_pb2 import AckFrame, ClientFrame, ConnectedFrame, MessageFrame, ReadFrame, ServerFrame
from trunkline.v1.message_pb2 import ROLE_USER, Author, Change, Message
from trunkline_client import builders
from trunkline_client.effects import Effect, Emit
from trunkline_client.session import Session

from tests.clients.scripted_edge import ALICE, at, message


def connect(session: Session, seq: int = 0, *, recovered: bool = False) -> list[Effect]:
    """Connects a session at a position."""
    session.disconnect()
    session.first_frames()
    positions = [TopicPosition(address=ALICE, position=at(seq))]
    return session.receive(ServerFrame(connected=ConnectedFrame(positions=positions, recovered=recovered)))


def message_frame(request_id: str) -> ClientFrame:
    """A message of the client."""
    return ClientFrame(message=MessageFrame(id=request_id, parts=builders.text("hello")))


def acked(request_id: str, seq: int) -> ServerFrame:
    """Its ack."""
    return ServerFrame(ack=AckFrame(id=request_id, message_id=f"m{seq}", position=at(seq), address=ALICE))


def ours(request_id: str, seq: int) -> Message:
    """The client's own message as a replay contains it."""
    return message(seq, client_id=request_id, author=Author(role=ROLE_USER, user="alice"))


def kinds(effects: list[Effect]) -> list[type[Any]]:
    return [type(effect) for effect in effects]


def emitted(effects: list[Effect]) -> list[int]:
    return [
        each.event.position.seq
        for each in effects
        if isinstance(each, Emit) and isinstance(each.event, Message)
    ]


def entries(effects: list[Effect]) -> list[int]:
    """Positions of all entries that are emitted."""
    found = []
    for each in effects:
        match each:
            case Emit(Message() | Change() as event):
                found.append(event.position.seq)
            case Emit(ReadFrame() as event):
                found.append(event.at.seq)
            case _:
                pass
    return found


def receive(session: Session, *messages: Message) -> list[Effect]:
    return [effect for each in messages for effect in session.receive(ServerFrame(message=each))]
