"""Topic keys, and positions in the logs of topics."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, TypeAlias

from trunkline.v1.address_pb2 import Address, Conversation
from trunkline.v1.address_pb2 import Position as PositionProto

#: Tenant, agent, platform, kind and id of the target; empty parts make the topic broader. A plain tuple, as
#: one is made for every message.
TopicKey: TypeAlias = tuple[str, str, str, int, str]

#: Kinds of target in a TopicKey; those of conversations are the contract's ConversationKind.
NO_TARGET = 0
PERSON = 1
GROUP = 2
USER = 3


class Position(NamedTuple):
    """A position in one topic's log; see `Position` in address.proto."""

    epoch: str
    seq: int

    def to_proto(self) -> PositionProto:
        """Return the position as a message of the contract."""
        return PositionProto(epoch=self.epoch, seq=self.seq)


#: Head of an empty log, and the position before the first entry of any log.
EMPTY = Position("", 0)


def topic_of(address: Address) -> TopicKey:
    """Return the topic of a valid address that does not name a connection."""
    target = address.WhichOneof("target")
    if target is None:
        return (address.tenant, address.agent, address.platform, NO_TARGET, "")
    if target == "conversation":
        conversation = address.conversation
        return (address.tenant, address.agent, address.platform, conversation.kind, conversation.id)
    return (address.tenant, "", "", USER, address.user)


@lru_cache(maxsize=1024)
def address_of(topic: TopicKey) -> Address:
    """Return the address of a topic, the inverse of `topic_of`. Cached: callers must not change it."""
    tenant, agent, platform, kind, target_id = topic
    if kind == NO_TARGET:
        return Address(tenant=tenant, agent=agent, platform=platform)
    if kind == USER:
        return Address(tenant=tenant, user=target_id)
    conversation = Conversation(kind=kind, id=target_id)  # type: ignore[arg-type]
    return Address(tenant=tenant, agent=agent, platform=platform, conversation=conversation)


def position_of(position: PositionProto) -> Position:
    """Return a position of the contract as a tuple."""
    return Position(position.epoch, position.seq)


def describe(address: Address) -> str:
    """Return a valid address in words, such as `agent echo on platform web`."""
    target = address.WhichOneof("target")
    if target == "connection":
        return f"connection {address.connection} of tenant {address.tenant}"
    tenant, agent, platform, kind, target_id = topic_of(address)
    if target == "user":
        return f"user {target_id} of tenant {tenant}"
    words = f"agent {agent}" if agent else f"tenant {tenant}"
    if platform:
        words += f" on platform {platform}"
    if kind != NO_TARGET:
        words += f" in {'person' if kind == PERSON else 'group'} {target_id}"
    return words
