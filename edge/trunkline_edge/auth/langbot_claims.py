"""The claims of LangBot's own tokens, which its web client sends to every server.

LangBot signs with HS256 and states `iss`, `aud`, `exp`, `user` (an e-mail address) and, for stored accounts,
`sub`. Its users manage pipelines; their tokens allow LangBot's chat of every agent, and nothing else.
"""

from __future__ import annotations

from typing import Any

from trunkline_runtime.allowed_addresses import AllowedAddresses

from trunkline_edge.dialects.langbot.pipeline_owner import NAME
from trunkline_edge.dialects.langbot.records import CONVERSATION_ID, PLATFORM

#: The issuer in tokens of LangBot 4.10 and later.
ISSUER = "langbot-core"

#: The dialect that holders of such a token manage.
MANAGED = NAME

_CHAT = frozenset({CONVERSATION_ID})
ADDRESSES = AllowedAddresses(None, frozenset({PLATFORM}), _CHAT, _CHAT)


def is_langbot(claims: dict[str, Any]) -> bool:
    """Whether LangBot issued the token, rather than an issuer that knows the claim `trunkline`."""
    return claims.get("iss") == ISSUER and "trunkline" not in claims
