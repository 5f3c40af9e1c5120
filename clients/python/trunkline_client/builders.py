"""Addresses and parts, made from plain values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from trunkline.v1.address_pb2 import (
    CONVERSATION_KIND_GROUP,
    CONVERSATION_KIND_PERSON,
    Address,
    Conversation,
    ConversationKind,
)
from trunkline.v1.message_pb2 import Message, Part, TextPart

Content: TypeAlias = str | Part | Iterable[Part]
"""What is said: text, one part, or several."""

_KINDS: dict[str, ConversationKind.ValueType] = {
    "person": CONVERSATION_KIND_PERSON,
    "group": CONVERSATION_KIND_GROUP,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def conversation(name: str | Conversation) -> Conversation:
    """A conversation from `person:<id>` or `group:<id>`. Raises ValueError for anything else."""
    if isinstance(name, Conversation):
        return name
    kind, colon, identity = name.partition(":")
    if kind not in _KINDS or not colon or not identity:
        raise ValueError(f"a conversation is written person:<id> or group:<id>, not {name!r}")
    return Conversation(kind=_KINDS[kind], id=identity)


def group(name: str | Conversation) -> Conversation:
    """A group from its id, from `group:<id>`, or as it is. Raises ValueError for a person's conversation."""
    if isinstance(name, str) and ":" not in name:
        return Conversation(kind=CONVERSATION_KIND_GROUP, id=name)
    found = conversation(name)
    if found.kind != CONVERSATION_KIND_GROUP:
        raise ValueError(f"only groups can be joined, and {name!r} is none")
    return found


def conversation_name(conversation: Conversation) -> str:
    """`person:<id>` or `group:<id>`."""
    return f"{_NAMES.get(conversation.kind, 'unknown')}:{conversation.id}"


def address(
    *,
    tenant: str,
    agent: str = "",
    platform: str = "",
    conversation: str | Conversation = "",
    user: str = "",
    connection: str = "",
) -> Address:
    """An address; see `trunkline.v1.Address` for which fields go together.

    Raises ValueError where more than one of `conversation`, `user` and `connection` is given.
    """
    if sum(map(bool, (conversation, user, connection))) > 1:
        raise ValueError("an address has at most one of conversation, user and connection")
    made = Address(tenant=tenant, agent=agent, platform=platform)
    if conversation:
        made.conversation.CopyFrom(_conversation(conversation))
    elif user:
        made.user = user
    elif connection:
        made.connection = connection
    return made


_conversation = conversation


def text(*texts: str) -> list[Part]:
    """Text parts."""
    return [Part(text=TextPart(text=each)) for each in texts]


def parts(content: Content) -> list[Part]:
    """Parts from whatever a caller may pass as content."""
    if isinstance(content, str):
        return text(content)
    if isinstance(content, Part):
        return [content]
    return list(content)


def text_of(message: Message) -> str:
    """The text of a message: its text parts, one below the other."""
    return "\n".join(part.text.text for part in message.parts if part.HasField("text"))


def address_name(address: Address) -> str:
    """An address for people to read; nothing takes it apart again."""
    names = [address.tenant, address.agent, address.platform]
    match address.WhichOneof("target"):
        case "conversation":
            names.append(conversation_name(address.conversation))
        case "user":
            names.append(f"user {address.user}")
        case "connection":
            names.append(f"connection {address.connection}")
        case _:
            pass
    return " / ".join(filter(None, names))
