"""Replies that a chat waits for before it ends."""

from __future__ import annotations

import asyncio

from trunkline.v1.message_pb2 import (
    CHANGE_KIND_ENDED,
    MESSAGE_STATE_FAILED,
    MESSAGE_STATE_OPEN,
    ROLE_AGENT,
    Change,
    Message,
)

from trunkline_client.events import Ack

_FAILURE = "The reply failed"


class AwaitedReplies:
    """Messages of the user whose replies have not ended yet."""

    def __init__(self) -> None:
        #: Error text of the last reply that FAILED.
        self.failure = ""
        self._unanswered: list[str] = []
        self._activity = asyncio.Event()
        #: Messages that were answered before their ack arrived.
        self._early: set[str] = set()
        #: Messages that open replies answer, by reply.
        self._open: dict[str, str] = {}

    def on_sent(self, ack: Ack) -> None:
        """Waits for one more reply, unless it arrived before the ack."""
        if ack.message_id in self._early:
            self._early.discard(ack.message_id)
        else:
            self._unanswered.append(ack.message_id)

    def on_message(self, message: Message) -> None:
        """Records a message; one by an agent may be a reply, or the beginning of one."""
        self._activity.set()
        if message.author.role != ROLE_AGENT:
            return
        if message.state == MESSAGE_STATE_OPEN:
            self._open[message.id] = message.reply_to
            return
        if message.state == MESSAGE_STATE_FAILED:
            self.failure = message.error.message or _FAILURE
        self._on_answered(message.reply_to)

    def on_delta(self) -> None:
        """Records that a reply has grown."""
        self._activity.set()

    def on_change(self, change: Change) -> None:
        """Records a change, which may be the end of a reply."""
        self._activity.set()
        if change.kind == CHANGE_KIND_ENDED and change.message_id in self._open:
            if change.state == MESSAGE_STATE_FAILED:
                self.failure = change.error.message or _FAILURE
            self._on_answered(self._open.pop(change.message_id))

    def _on_answered(self, message_id: str) -> None:
        if message_id in self._unanswered:
            self._unanswered.remove(message_id)
        else:
            self._early.add(message_id)

    async def wait(self, idle_s: float) -> bool:
        """Waits until every message is answered; returns False if nothing arrives for this long."""
        try:
            while self._unanswered:
                async with asyncio.timeout(idle_s):
                    self._activity.clear()
                    await self._activity.wait()
        except TimeoutError:
            return False
        return True
