"""A conversation in the terminal, or over a pipe."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from rich.console import Console
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_ENDED,
    MESSAGE_STATE_FAILED,
    MESSAGE_STATE_OPEN,
    ROLE_AGENT,
    Change,
    Message,
)

from trunkline_client.client import Client
from trunkline_client.errors import TrunklineError
from trunkline_client.events import Ack, Delta, MessageChanged, MessagesLost, Snapshot
from trunkline_client.transcript import Transcript


class Replies:
    """Which of our messages an agent has answered, to the end."""

    def __init__(self) -> None:
        #: What was said of the last reply that FAILED.
        self.failure = ""
        self._awaited: list[str] = []
        self._changed = asyncio.Event()
        self._early: set[str] = set()
        #: Of replies that are still open, the messages that they answer.
        self._open: dict[str, str] = {}

    def sent(self, ack: Ack) -> None:
        """One more waits for its reply, unless that was faster than the ack."""
        if ack.message_id in self._early:
            self._early.discard(ack.message_id)
        else:
            self._awaited.append(ack.message_id)

    def heard(self, message: Message) -> None:
        """A message came; one of an agent may be a reply, or the beginning of one."""
        self._changed.set()
        if message.author.role != ROLE_AGENT:
            return
        if message.state == MESSAGE_STATE_OPEN:
            self._open[message.id] = message.reply_to
        else:
            self._answered(message.reply_to)

    def grew(self) -> None:
        """A reply goes on."""
        self._changed.set()

    def ended(self, change: Change) -> None:
        """A message may have ended."""
        self._changed.set()
        if change.kind == CHANGE_KIND_ENDED and change.message_id in self._open:
            if change.state == MESSAGE_STATE_FAILED:
                self.failure = change.error.message or "The reply failed"
            self._answered(self._open.pop(change.message_id))

    def _answered(self, message_id: str) -> None:
        if message_id in self._awaited:
            self._awaited.remove(message_id)
        else:
            self._early.add(message_id)

    async def all_here(self, within_s: float) -> bool:
        """Waits until every message has its reply; False where nothing came for so long."""
        try:
            while self._awaited:
                async with asyncio.timeout(within_s):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True


class InterruptHandler:
    """What Ctrl-C does: it cancels the reply that is being shown, or else ends the chat."""

    def __init__(self, client: Client, transcript: Transcript) -> None:
        self.quitting = asyncio.Event()
        self._client = client
        self._transcript = transcript
        self._cancelled = ""
        self._cancelling: asyncio.Task[None] | None = None

    def pressed(self) -> None:
        """Somebody pressed it; a second time during one reply ends the chat too."""
        growing = self._transcript.growing
        if not growing or growing == self._cancelled:
            self.quitting.set()
            return
        self._cancelled = growing
        self._cancelling = asyncio.create_task(self._cancel(growing))

    async def _cancel(self, message_id: str) -> None:
        try:
            await self._client.cancel(message_id=message_id)
        except TrunklineError as error:
            self._transcript.note(f"not cancelled: {error}")


async def chat(client: Client, console: Console, you: str, agent: str, once: str, wait_s: float) -> int:
    """Says `once`, or else each line of standard input, and shows what comes; returns the exit code.

    On a terminal the conversation lasts until the input ends. Otherwise it lasts until each line has its
    reply, at most `wait_s` after the last one.
    """
    transcript, replies = Transcript(console, you, agent), Replies()
    async with client:
        transcript.note(f"connected as {client.connection_id}; Ctrl-D ends, Ctrl-C stops a reply")
        interrupt = InterruptHandler(client, transcript)
        hearing = asyncio.create_task(_hear(client, transcript, replies))
        saying = asyncio.create_task(_say(client, transcript, replies, once))
        quitting = asyncio.create_task(interrupt.quitting.wait())
        talking = {hearing, saying, quitting}
        # Where there are no such signals, Ctrl-C ends the chat as it ends any program.
        with suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt.pressed)
        try:
            done, _ = await asyncio.wait(talking, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if quitting in done or not (once or not sys.stdin.isatty()):
                return 0
            return await _await_replies(replies, {hearing, quitting}, wait_s)
        finally:
            for each in talking:
                each.cancel()
            # What ended the one may have ended the other too; told once is enough.
            await asyncio.gather(*talking, return_exceptions=True)


async def _await_replies(replies: Replies, others: set[asyncio.Task[Any]], wait_s: float) -> int:
    """Waits until all replies are there, or one of the others ends first; returns the exit code."""
    here = asyncio.create_task(replies.all_here(wait_s))
    await asyncio.wait({here, *others}, return_when=asyncio.FIRST_COMPLETED)
    if not here.done():
        here.cancel()
        for task in others:
            if task.done():
                task.result()
        return 0
    if not here.result():
        return _complain(f"No reply within {wait_s:g} s")
    return _complain(replies.failure) if replies.failure else 0


def _complain(text: str) -> int:
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
    return 1


async def _hear(client: Client, transcript: Transcript, replies: Replies) -> None:
    async for event in client.events():
        match event:
            case Message():
                transcript.said(event)
                replies.heard(event)
            case Delta():
                transcript.grew(event)
                replies.grew()
            case Snapshot(message):
                transcript.replaced(message)
                replies.heard(message)
            case MessageChanged():
                transcript.changed(event)
                replies.ended(event.change)
            case MessagesLost():
                transcript.note("reconnected; some messages may be missing")
            case _:
                pass


async def _say(client: Client, transcript: Transcript, replies: Replies, once: str) -> None:
    if once:
        transcript.you_said(once, typed=False)
        replies.sent(await client.send(once))
        return
    async for line in stdin_lines():
        if not line.strip():
            continue
        transcript.you_said(line, typed=sys.stdin.isatty())
        try:
            replies.sent(await client.send(line))
        except TrunklineError as error:
            if client.state == "closed":
                raise
            transcript.note(f"not sent: {error}")


async def stdin_lines() -> AsyncIterator[str]:
    """Lines of standard input, whatever it is: a terminal, a pipe or a file.

    A daemon thread reads the descriptor itself, as one that waits in `sys.stdin` cannot be ended. It
    reads at most 64 KiB ahead of the lines taken.
    """
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes] = asyncio.Queue()
    taken = threading.Semaphore(1)

    def read() -> None:
        while taken.acquire():
            chunk = os.read(0, 1 << 16)
            try:
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)
            except RuntimeError:
                return  # the loop is closed
            if not chunk:
                return

    threading.Thread(target=read, name="stdin", daemon=True).start()
    rest = b""
    while chunk := await chunks.get():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace").rstrip("\r")
        taken.release()
    if rest:
        yield rest.decode(errors="replace")
