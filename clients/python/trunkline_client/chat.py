"""A conversation in the terminal, or over a pipe."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import suppress
from typing import Any

from rich.console import Console
from trunkline.v1.frame_pb2 import ReplyStatusFrame
from trunkline.v1.message_pb2 import Message

from trunkline_client.awaited_replies import AwaitedReplies
from trunkline_client.client import Client
from trunkline_client.errors import OutcomeUnknown, TrunklineError
from trunkline_client.events import Delta, MessageChanged, MessagesLost, Snapshot
from trunkline_client.stdin_lines import stdin_lines
from trunkline_client.transcript import Transcript


class InterruptHandler:
    """Handler of Ctrl-C: cancels the reply that is being shown, or else ends the chat."""

    def __init__(self, client: Client, transcript: Transcript) -> None:
        self.quitting = asyncio.Event()
        self._client = client
        self._transcript = transcript
        self._cancelled_id = ""
        self._cancelling: asyncio.Task[None] | None = None

    def on_interrupt(self) -> None:
        """Handles Ctrl-C; a second one during the same reply ends the chat too."""
        open_id = self._transcript.open_id
        if not open_id or open_id == self._cancelled_id:
            self.quitting.set()
            return
        self._cancelled_id = open_id
        self._cancelling = asyncio.create_task(self._cancel(open_id))

    async def _cancel(self, message_id: str) -> None:
        try:
            await self._client.cancel(message_id=message_id)
        except TrunklineError as error:
            self._transcript.note(f"not cancelled: {error}")


async def chat(client: Client, console: Console, user: str, agent: str, once: str, wait_s: float) -> int:
    """Sends `once`, or else each line of standard input, and shows what arrives; returns the exit code.

    On a terminal the conversation lasts until the input ends. Otherwise it lasts until each line is answered;
    it fails if nothing arrives for `wait_s`.
    """
    transcript, replies = Transcript(console, user, agent), AwaitedReplies()
    async with client:
        transcript.note(f"connected as {client.connection_id}; Ctrl-D ends, Ctrl-C cancels a reply")
        interrupts = InterruptHandler(client, transcript)
        receiving = asyncio.create_task(_receive(client, transcript, replies))
        sending = asyncio.create_task(_send(client, transcript, replies, once))
        quitting = asyncio.create_task(interrupts.quitting.wait())
        tasks = {receiving, sending, quitting}
        # Without such signals, Ctrl-C ends the chat as it ends any program.
        with suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupts.on_interrupt)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if quitting in done or not (once or not sys.stdin.isatty()):
                return 0
            return await _await_replies(replies, {receiving, quitting}, wait_s)
        finally:
            for each in tasks:
                each.cancel()
            # One cause may have ended several tasks; reporting it once is enough.
            await asyncio.gather(*tasks, return_exceptions=True)


async def _await_replies(replies: AwaitedReplies, others: set[asyncio.Task[Any]], wait_s: float) -> int:
    """Waits until every message is answered, or another task ends first; returns the exit code."""
    waiting = asyncio.create_task(replies.wait(wait_s))
    await asyncio.wait({waiting, *others}, return_when=asyncio.FIRST_COMPLETED)
    if not waiting.done():
        waiting.cancel()
        for task in others:
            if task.done():
                task.result()
        return 0
    if not waiting.result():
        return _fail(f"No reply within {wait_s:g} s")
    return _fail(replies.failure) if replies.failure else 0


def _fail(text: str) -> int:
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
    return 1


async def _receive(client: Client, transcript: Transcript, replies: AwaitedReplies) -> None:
    async for event in client.events():
        match event:
            case Message():
                transcript.on_message(event)
                replies.on_message(event)
            case Delta():
                transcript.on_delta(event)
                replies.on_delta()
            case Snapshot(message):
                transcript.on_snapshot(message)
                replies.on_message(message)
            case MessageChanged():
                transcript.on_change(event)
                replies.on_change(event.change)
            case ReplyStatusFrame():
                transcript.on_status(event)
            case MessagesLost():
                transcript.note("reconnected; some messages may be missing")
            case _:
                pass


async def _send(client: Client, transcript: Transcript, replies: AwaitedReplies, once: str) -> None:
    if once:
        transcript.on_sent(once, typed=False)
        replies.on_sent(await client.send(once))
        return
    async for line in stdin_lines():
        if not line.strip():
            continue
        transcript.on_sent(line, typed=sys.stdin.isatty())
        try:
            replies.on_sent(await client.send(line))
        except TrunklineError as error:
            if client.state == "closed":
                raise
            sent = "may have been sent" if isinstance(error, OutcomeUnknown) else "not sent"
            transcript.note(f"{sent}: {error}")
