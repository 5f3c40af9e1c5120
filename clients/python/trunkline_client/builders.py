"""Addresses, contents and requests, built from plain values. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias, get_args

from trunkline.v1.address_pb2 import (
    CONVERSATION_KIND_GROUP,
    CONVERSATION_KIND_PERSON,
    Address,
    Conversation,
    ConversationKind,
)
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest
from trunkline.v1.message_pb2 import Author, Message, Part, TextPart, WithoutWorker

from trunkline_client.well_formed import well_formed

Content: TypeAlias = str | Part | Iterable[Part]
"""Content of a message: text, one part, or several."""

WithoutWorkerName: TypeAlias = Literal["", "expire", "keep", "skip"]
"""Delivery of a message to the agent while no worker takes it; empty for the agent's setting."""

_KINDS: dict[str, ConversationKind.ValueType] = {
    "person": CONVERSATION_KIND_PERSON,
    "group": CONVERSATION_KIND_GROUP,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def conversation(name: str | Conversation) -> Conversation:
    """Builds a conversation.

    Args:
        name: `person:<id>`, `group:<id>`, or a Conversation, which is returned as it is.

    Returns:
        The conversation.

    Raises:
        ValueError: The name has another form.
    """
    if isinstance(name, Conversation):
        return name
    kind, colon, identity = name.partition(":")
    if kind not in _KINDS or not colon or not identity:
        raise ValueError(f"a conversation is written person:<id> or group:<id>, not {name!r}")
    return Conversation(kind=_KINDS[kind], id=identity)


def group(name: str | Conversation) -> Conversation:
    """Builds a group from its id, from `group:<id>`, or from a Conversation.

    Raises ValueError for a person's conversation.
    """
    if isinstance(name, str) and ":" not in name:
        return Conversation(kind=CONVERSATION_KIND_GROUP, id=name)
    found = conversation(name)
    if found.kind != CONVERSATION_KIND_GROUP:
        raise ValueError(f"only groups can be joined; {name!r} is not a group")
    return found


def optional_conversation(name: str | Conversation | None) -> Conversation | None:
    """Builds a conversation unless there is none. Raises like `conversation`."""
    return None if name is None else conversation(name)


def conversation_name(conversation: Conversation) -> str:
    """Names a conversation in the form that `conversation` takes.

    Args:
        conversation: The conversation.

    Returns:
        `person:<id>` or `group:<id>`.

    Raises:
        Nothing.
    """
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
    """Builds an address; see `trunkline.v1.Address` for the fields that go together.

        address(tenant="demo", agent="echo", platform="web", conversation="group:team")

    Args:
        tenant: The tenant.
        agent: The agent; empty for the whole tenant, or with `user` or `connection`.
        platform: The platform; empty for all of the agent's.
        conversation: `person:<id>`, `group:<id>`, or a Conversation.
        user: The user, across agents and platforms.
        connection: The connection.

    Returns:
        The address.

    Raises:
        ValueError: More than one of `conversation`, `user` and `connection` is given.
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


def address_name(address: Address) -> str:
    """Names an address for people; the name cannot be parsed.

    Args:
        address: The address.

    Returns:
        Its fields, such as `demo / echo / web / group:team`.

    Raises:
        Nothing.
    """
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


def text(*texts: str) -> list[Part]:
    """Builds text parts.

    Args:
        texts: The texts, one part each. Lone surrogates become U+FFFD.

    Returns:
        The parts.

    Raises:
        Nothing.
    """
    return [Part(text=TextPart(text=well_formed(each))) for each in texts]


def parts(content: Content) -> list[Part]:
    """Builds parts from content.

    Args:
        content: Text, one part, or several.

    Returns:
        The parts.

    Raises:
        Nothing.
    """
    if isinstance(content, str):
        return text(content)
    if isinstance(content, Part):
        return [content]
    return list(content)


def text_of(message: Message) -> str:
    """Extracts the text of a message.

    Args:
        message: The message.

    Returns:
        Its text parts, one below the other.

    Raises:
        Nothing.
    """
    return "\n".join(part.text.text for part in message.parts if part.HasField("text"))


def without_worker_value(name: WithoutWorkerName) -> WithoutWorker.ValueType:
    """Builds the contract's value. Raises ValueError for another name."""
    if name not in get_args(WithoutWorkerName):
        raise ValueError(f"without_worker must be expire, keep or skip, not {name!r}")
    return WithoutWorker.Value(f"WITHOUT_WORKER_{name.upper() or 'UNSPECIFIED'}")


def broadcast_request(
    address: Address,
    content: Content,
    *,
    author: Author | None = None,
    reply_to: str = "",
    attributes: Mapping[str, str] | None = None,
    idempotency_key: str = "",
    ephemeral: bool = False,
    require_connection: bool = False,
    without_worker: WithoutWorkerName = "",
) -> BroadcastRequest:
    """Builds a request for a `Publisher`.

    Args:
        address: The recipients: a tenant, agent, platform, conversation, user or connection.
        content: Text, a part, or several parts.
        author: The author; without a role it is SYSTEM.
        reply_to: Id of the message that this one answers.
        attributes: Strings of the application's own.
        idempotency_key: Lets a `Publisher` send the request again after a break.
        ephemeral: Do not store the message; only current connections get it.
        require_connection: Reject the message if nobody is connected, instead of storing it.
        without_worker: Delivery of a user's message to the agent while no worker takes it; see Backend.

    Returns:
        The request.

    Raises:
        Nothing.
    """
    return BroadcastRequest(
        address=address,
        parts=parts(content),
        author=author,
        reply_to=reply_to,
        attributes=dict(attributes or {}),
        idempotency_key=idempotency_key,
        ephemeral=ephemeral,
        require_connection=require_connection,
        without_worker=without_worker_value(without_worker),
    )
