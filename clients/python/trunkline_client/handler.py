"""What a handler may return, and what becomes of it. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from trunkline.v1.agent_service_pb2 import Reply, Settlement
from trunkline.v1.message_pb2 import Message, Part, TextPart

HandlerResult: TypeAlias = str | Part | Reply | Sequence[str | Part | Reply] | None
"""One reply, several, or none."""

Handler: TypeAlias = Callable[[Message], HandlerResult | Awaitable[HandlerResult]]
"""What a worker does with what was said; a plain function where it does not wait for anything."""


def settlement(delivery_id: int, returned: HandlerResult) -> Settlement:
    """The settlement of a delivery. Raises TypeError for what is no reply."""
    if isinstance(returned, str):
        # The short way of what `_reply` does, as echo-like agents do little else.
        return Settlement(
            delivery_id=delivery_id, replies=[Reply(parts=[Part(text=TextPart(text=returned))])]
        )
    if returned is None:
        return Settlement(delivery_id=delivery_id)
    replies = [returned] if isinstance(returned, (Reply, Part)) else returned
    return Settlement(delivery_id=delivery_id, replies=[_reply(each) for each in replies])


def _reply(content: str | Part | Reply) -> Reply:
    if isinstance(content, Reply):
        return content
    if isinstance(content, str):
        return Reply(parts=[Part(text=TextPart(text=content))])
    if isinstance(content, Part):
        return Reply(parts=[content])
    raise TypeError(
        f"a handler returns str, Part, Reply, several of them or None, not {type(content).__name__}"
    )
