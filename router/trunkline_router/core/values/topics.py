"""Keys of topics, and positions in their logs."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, TypeAlias

from trunkline.v1.address_pb2 import Address, Conversation
from trunkline.v1.address_pb2 import Position as PositionProto

#: A topic: tenant, agent, platform, kind of target, id of target; empty where the address is broader.
#: A plain tuple, as one is made for each message.
TopicKey: TypeAlias = tuple[str, str, str, int, str]

#: Kinds of target in a TopicKey; those of conversations are the contract's ConversationKind.
NO_TARGET = 0
PERSON = 1
GROUP = 2
USER = 3


class Position(NamedTuple):
    """A place in one topic's log; see `Position` in address.proto."""

    epoch: str
    seq: int

    def to_proto(self) -> PositionProto:
        """The contract's form."""
        return PositionProto(epoch=self.epoch, seq=self.seq)


#: The head of a log that holds nothing, and the position before the first message of any log.
EMPTY = Position("", 0)


def topic_of(address: Address) -> TopicKey:
    """The topic of a valid address that is not a connection's."""
    target = address.WhichOneof("target")
    if target is None:
        return (address.tenant, address.agent, address.platform, NO_TARGET, "")
    if target == "conversation":
        conversation = address.conversation
        return (address.tenant, address.agent, address.platform, conversation.kind, conversation.id)
    return (address.tenant, "", "", USER, address.user)


@lru_cache(maxsize=1024)
def address_of(topic: TopicKey) -> Address:
    """The address of a topic: the inverse of `topic_of`. Shared by all who ask, so not to be changed."""
    tenant, agent, platform, kind, ident = topic
    if kind == NO_TARGET:
        return Address(tenant=tenant, agent=agent, platform=platform)
    if kind == USER:
        return Address(tenant=tenant, user=ident)
    conversation = Conversation(kind=kind, id=ident)  # type: ignore[arg-type]
    return Address(tenant=tenant, agent=agent, platform=platform, conversation=conversation)


def position_of(position: PositionProto) -> Position:
    """A position in the contract's form."""
    return Position(position.epoch, position.seq)
