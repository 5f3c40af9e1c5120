"""The user and the conversation of a request, and ids by which its retries are recognised.

Names come from applications, which may choose any; those that are no ids of the contract are hashed.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from trunkline_runtime.jose import from_base64url, read_object

from trunkline_edge.dialects.dialect import Clock, HttpRequest, bearer
from trunkline_edge.dialects.openai.chat_request import ChatRequest
from trunkline_edge.dialects.openai.errors import invalid

#: Headers that name the conversation: ours, and the one that Open WebUI forwards.
CONVERSATION, OPEN_WEBUI_CHAT = "x-conversation-id", "x-openwebui-chat-id"
#: The header in which Open WebUI forwards its user.
OPEN_WEBUI_USER = "x-openwebui-user-id"
#: Sent by callers that make their requests idempotent themselves.
IDEMPOTENCY_KEY = "idempotency-key"
#: Sent by OpenAI's SDKs with each request: 0, or the number of the retry.
RETRY_COUNT = "x-stainless-retry-count"

#: Names of users and conversations together must fit into one id of 128 characters.
MAX_NAME_CHARACTERS = 60
MAX_KEY_CHARACTERS = 256
_NAME = re.compile(rf"[A-Za-z0-9._~@-]{{0,{MAX_NAME_CHARACTERS}}}")

#: A retry is sent within this time after its first attempt.
RETRY_WINDOW = timedelta(minutes=10)
#: Calls without conversation that are remembered for retries; beyond them the oldest are forgotten.
MAX_RECENT_CALLS = 20_000


class Call(NamedTuple):
    """One attempt of a call: who makes it, and in which conversation."""

    #: The user, if the caller may name any; a token names its own.
    user: str
    #: The conversation among the user's.
    chat: str
    #: No other request is in the conversation, except attempts of the same call.
    is_new_chat: bool
    #: Id of the message, unless an earlier attempt has sent it.
    client_id: str
    #: Prefix of the ids of all attempts; empty if they have the same id.
    prefix: str
    #: An earlier attempt may have sent the message.
    is_retry: bool


class Calls:
    """Reads who calls. It remembers the conversations of recent calls that named none, for their retries.

    That helps only those that reach the same edge; at another one, such a retry is a call of its own.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: By tenant, credentials and digest of the request; the newest at the end.
        self._chats: dict[tuple[str, str, str], tuple[str, datetime]] = {}

    def read(self, request: HttpRequest, asked: ChatRequest) -> Call:
        """The call that a request is an attempt of. Raises Refused for a malformed header."""
        headers = request.headers
        user, chat = read_conversation(headers, asked.user)
        if key := headers.get(IDEMPOTENCY_KEY, ""):
            if len(key) > MAX_KEY_CHARACTERS:
                raise invalid(IDEMPOTENCY_KEY, f"must have at most {MAX_KEY_CHARACTERS} characters")
            # The router recognises the id itself.
            digest = _digest(key)
            return Call(user, chat or f"key-{digest[:24]}", not chat, f"key-{digest}", "", is_retry=False)
        prefix = f"call-{asked.digest}-"
        is_retry = headers.get(RETRY_COUNT, "0") not in ("", "0")
        is_new = not chat
        if is_new:
            tenant = request.parameters["tenant"]
            # Else a stranger who guesses the text would be given the name of another's conversation.
            is_known = not request.tenants.is_open(tenant, is_local=False)
            recent = (tenant, _digest(bearer(headers)), asked.digest)
            found = self._find(recent) if is_retry and is_known else ""
            chat = found or f"call-{secrets.token_hex(12)}"
            if is_known:
                self._remember(recent, chat)
            is_retry = bool(found)
        return Call(user, chat, is_new, prefix + secrets.token_hex(8), prefix, is_retry)

    def _find(self, recent: tuple[str, str, str]) -> str:
        chat, began_at = self._chats.get(recent, ("", None))
        return chat if began_at is not None and self._clock() - began_at <= RETRY_WINDOW else ""

    def _remember(self, recent: tuple[str, str, str], chat: str) -> None:
        self._chats.pop(recent, None)
        self._chats[recent] = chat, self._clock()
        if len(self._chats) > MAX_RECENT_CALLS:
            del self._chats[next(iter(self._chats))]


def read_conversation(headers: Mapping[str, str], named_user: str = "") -> tuple[str, str]:
    """The user and the conversation that a caller names, either empty for none.

    `named_user` is the field `user` of the body. Raises Refused for a malformed header.
    """
    user = _name(headers.get(OPEN_WEBUI_USER, "") or named_user)
    if chat := headers.get(CONVERSATION, ""):
        if chat != _name(chat):
            problem = f"must have 1 to {MAX_NAME_CHARACTERS} letters, digits and characters of -_.~@"
            raise invalid(CONVERSATION, problem)
        return user, chat
    chat = headers.get(OPEN_WEBUI_CHAT, "") or (f"user.{named_user}" if named_user else "")
    return user, _name(chat)


def _name(text: str) -> str:
    """The text if it is fit for a part of an id, else a hash of it; empty for an empty one."""
    if _NAME.fullmatch(text):
        return text
    return f"h-{_digest(text)[:32]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def claimed_agents(token: str) -> list[str] | None:
    """The agents that a token claims to allow, before it is verified; None for any, or no JSON Web Token."""
    try:
        claims = read_object(from_base64url(token.split(".")[1]))
        agents = claims["trunkline"]["agents"]
    except (IndexError, KeyError, TypeError, ValueError):
        return None
    return [agent for agent in agents if isinstance(agent, str)] if isinstance(agents, list) else None
