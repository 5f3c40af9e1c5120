"""Texts that the database can hold."""

from __future__ import annotations

from trunkline_router.core.values.topics import TopicKey

#: The highest bigint. Ids have 64 bits in the contract.
HIGHEST_ID = (1 << 63) - 1


def is_storable(*texts: str) -> bool:
    """Return whether these texts can be parameters. No row has any other text, so it matches nothing.

    PostgreSQL has no NUL in texts, and UTF-8 no surrogates.
    """
    return all("\0" not in text and (text.isascii() or _is_utf8(text)) for text in texts)


def is_storable_topic(topic: TopicKey) -> bool:
    """Return whether a row can have this topic; see is_storable."""
    tenant, agent, platform, _, target = topic
    return is_storable(tenant, agent, platform, target)


def utf8_prefix(text: str) -> str:
    """Return the beginning of a text up to the first surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[: error.start]
    return text


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
