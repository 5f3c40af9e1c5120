"""A conversation in the terminal, or over a pipe."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from rich.console import Console
from rich.text import Text
from trunkline.v1.message_pb2 import ROLE_AGENT, ROLE_USER, Message

from trunkline_client.client import Client
from trunkline_client.errors import TrunklineError
from trunkline_client.events import Ack, Lost
from trunkline_client.wording import text_of

_STYLES = {ROLE_USER: "bold cyan", ROLE_AGENT: "bold green"}
_UP_AND_CLEAR = "\x1b[1A\x1b[2K"


class Transcript:
    """Who said what: with times and colours on a terminal, plain lines when piped."""

    def __init__(self, console: Console, you: str, agent: str) -> None:
        self._console = console
        self._you = you
        self._agent = agent

    def said(self, message: Message) -> None:
        """A message came."""
        author = message.author
        fallback = self._agent if author.role == ROLE_AGENT else author.user or "system"
        taken = message.HasField("created_at")
        when = message.created_at.ToDatetime(UTC).astimezone() if taken else None
        self._line(author.name or fallback, _STYLES.get(author.role, "bold magenta"), text_of(message), when)

    def you_said(self, line: str, *, typed: bool) -> None:
        """A line was sent. One that was typed is on the screen already, and is replaced."""
        if not self._console.is_terminal:
            return
        if typed:
            self._console.file.write(_UP_AND_CLEAR)
        self._line(self._you, _STYLES[ROLE_USER], line, None)

    def note(self, text: str) -> None:
        """Something happened that nobody said."""
        if self._console.is_terminal:
            self._console.print(Text(text, "dim"))

    def _line(self, who: str, style: str, what: str, when: datetime | None) -> None:
        if not self._console.is_terminal:
            self._console.print(what, markup=False, highlight=False, soft_wrap=True)
            return
        clock = (when or datetime.now().astimezone()).strftime("%H:%M:%S")
        self._console.print(Text.assemble((clock, "dim"), "  ", (who, style), "  ", what))


class Replies:
    """Which of our messages an agent has answered."""

    def __init__(self) -> None:
        self._awaited: list[str] = []
        self._changed = asyncio.Event()
        self._early: set[str] = set()

    def sent(self, ack: Ack) -> None:
        """One more waits for its reply, unless that was faster than the ack."""
        if ack.message_id in self._early:
            self._early.discard(ack.message_id)
        else:
            self._awaited.append(ack.message_id)

    def heard(self, message: Message) -> None:
        """A message came; one of an agent may be a reply."""
        if message.author.role != ROLE_AGENT:
            return
        if message.reply_to in self._awaited:
            self._awaited.remove(message.reply_to)
            self._changed.set()
        else:
            self._early.add(message.reply_to)

    async def all_here(self, within_s: float) -> bool:
        """Waits until every message has its reply; False where one is still missing."""
        try:
            async with asyncio.timeout(within_s):
                while self._awaited:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True


async def chat(client: Client, console: Console, you: str, agent: str, once: str, wait_s: float) -> int:
    """Says `once`, or else each line of standard input, and shows what comes; returns the exit code.

    On a terminal the conversation lasts until the input ends. Otherwise it lasts until each line has its
    reply, at most `wait_s` after the last one.
    """
    transcript, replies = Transcript(console, you, agent), Replies()
    async with client:
        transcript.note(f"connected as {client.connection_id}; Ctrl-D ends")
        hearing = asyncio.create_task(_hear(client, transcript, replies))
        saying = asyncio.create_task(_say(client, transcript, replies, once))
        try:
            done, _ = await asyncio.wait({hearing, saying}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if once or not sys.stdin.isatty():
                return 0 if await _replied(replies, hearing, wait_s) else _no_reply(wait_s)
            return 0
        finally:
            for task in (hearing, saying):
                task.cancel()
            # What ended the one may have ended the other too; told once is enough.
            await asyncio.gather(hearing, saying, return_exceptions=True)


async def _replied(replies: Replies, hearing: asyncio.Task[None], wait_s: float) -> bool:
    here = asyncio.create_task(replies.all_here(wait_s))
    await asyncio.wait({here, hearing}, return_when=asyncio.FIRST_COMPLETED)
    if not here.done():
        here.cancel()
        hearing.result()
        return False
    return here.result()


def _no_reply(wait_s: float) -> int:
    Console(stderr=True).print(f"No reply within {wait_s:g} s")
    return 1


async def _hear(client: Client, transcript: Transcript, replies: Replies) -> None:
    async for event in client.events():
        if isinstance(event, Message):
            transcript.said(event)
            replies.heard(event)
        elif isinstance(event, Lost):
            transcript.note("reconnected; some messages may be missing")


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
