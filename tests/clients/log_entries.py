"""Log entries that an edge sends, and a short form of the events that a client makes of them."""

from __future__ import annotations

from typing import Any

from trunkline.v1.message_pb2 import (
    CHANGE_KIND_ENDED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_OPEN,
    Change,
    Message,
)
from trunkline_client import Delta, Event, MessageChanged, Snapshot, text_of

from tests.clients.scripted_edge import ALICE, at, message


def begun(seq: int, text: str = "", **more: Any) -> Message:
    """An open message."""
    made = message(seq, "x", state=MESSAGE_STATE_OPEN, **more)
    del made.parts[:]
    if text:
        made.parts.add().text.text = text
    return made


def ended(seq: int, message_id: str, state: Any = MESSAGE_STATE_COMPLETE, **more: Any) -> Change:
    """The log entry that ends a message."""
    return Change(
        position=at(seq),
        address=ALICE,
        message_id=message_id,
        kind=more.pop("kind", CHANGE_KIND_ENDED),
        state=state,
        **more,
    )


def summary(event: Event) -> Any:
    """A short form of an event."""
    match event:
        case Message():
            return ("message", text_of(event))
        case Delta():
            return event.text or event.reasoning or event.part
        case Snapshot(whole):
            return ("snapshot", text_of(whole))
        case MessageChanged():
            return ("changed", None if event.message is None else text_of(event.message))
        case _:
            return event
