"""Visitors of web pages that embed a bot: their bot's tenant, and their own conversation."""

from __future__ import annotations

import uuid
from typing import NamedTuple

from trunkline.v1.address_pb2 import Address, Conversation
from trunkline.v1.tenant_pb2 import OPENNESS_ANYBODY

from trunkline_edge.dialects.dialect import HttpRequest
from trunkline_edge.dialects.langbot.pipeline_owner import NAME as PIPELINES
from trunkline_edge.dialects.langbot.records import SESSION_TYPES
from trunkline_edge.dialects.tenant_policies import TenantPolicies

#: The dialect's name, for which tenants reserve the bots that their pages embed.
NAME = "langbot.embed"

#: Platform of visitors.
PLATFORM = "web_page"


class EmbeddedBot(NamedTuple):
    """A bot that visitors may chat with; the tenant is empty for none."""

    tenant: str
    #: Visitors need no proof; otherwise the tenant's rules for callers apply.
    is_public: bool


def bot_of(tenants: TenantPolicies, bot: str, is_local: bool) -> EmbeddedBot:
    """Find a bot: one that a tenant declares, else a pipeline of a tenant that is open to the caller."""
    if owner := tenants.owner_of(NAME, bot):
        return EmbeddedBot(owner, is_public=True)
    owner = tenants.owner_of(PIPELINES, bot)
    if not tenants.is_open(owner, is_local):
        return EmbeddedBot("", is_public=False)
    policy = tenants.policy(owner)
    is_public = policy is not None and policy.settings.open_to == OPENNESS_ANYBODY
    return EmbeddedBot(owner, is_public)


def tenant_of_bot(request: HttpRequest) -> str:
    """The tenant of the bot in a path; empty for none."""
    return bot_of(request.tenants, request.parameters["bot"], request.is_local).tenant


def is_visitor(request: HttpRequest) -> bool:
    """Whether the caller needs no proof for the bot in a path."""
    return bot_of(request.tenants, request.parameters["bot"], request.is_local).is_public


def is_session_id(text: str) -> bool:
    """Whether a text is a random UUID in its canonical form, which no other visitor can guess."""
    try:
        parsed = uuid.UUID(text)
    except ValueError:
        return False
    return parsed.version == 4 and str(parsed) == text


def conversation_of_visitor(tenant: str, bot: str, session_type: str, session_id: str) -> Address:
    """The address of a visitor's conversation."""
    conversation = Conversation(kind=SESSION_TYPES[session_type], id=session_id)
    return Address(tenant=tenant, agent=bot, platform=PLATFORM, conversation=conversation)
