"""Chats of one user with an agent: conversations beside the one that is named by the user alone.

A chat's conversation is `person:<user>»<chat>`. Only its user reaches it: admission derives the user from the
verified token, and a token allows the conversation of a user whose id contains the separator only if it names
that conversation. On a tenant that is open to the client, or with a shared secret, the client may name any
user, as everywhere.
"""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import CONVERSATION_KIND_PERSON
from trunkline.v1.edge_service_pb2 import ConnectionOpened

from trunkline_edge.auth.claims import CHAT_SEPARATOR
from trunkline_edge.auth.principal import Principal


def enter_chat(opened: ConnectionOpened, chat: str, principal: Principal | None) -> None:
    """Set the conversation of a client that connects to a chat of its own user. Raises Refused FORBIDDEN.

    The client's token must allow the conversation `person:<user>`. The router validates the id.
    """
    conversation = opened.address.conversation
    conversation.kind = CONVERSATION_KIND_PERSON
    conversation.id = opened.user
    if principal is not None and not principal.any_user:
        opened.user = conversation.id = principal.user
    if CHAT_SEPARATOR in opened.user:
        problem = f"a user whose id contains {CHAT_SEPARATOR} has no chats"
        raise catalogue.FORBIDDEN.refused(problem=problem)
    if principal is not None and not principal.any_user:
        principal.authorize(opened, names_user=False)
    conversation.id = f"{opened.user}{CHAT_SEPARATOR}{chat}"
