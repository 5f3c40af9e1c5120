"""Display of a conversation: on a terminal, or as plain lines in a pipe."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.console import Console
from rich.text import Text
from trunkline.v1.frame_pb2 import REPLY_STATUS_RETRYING, ReplyStatusFrame
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_ENDED,
    CHANGE_KIND_RECALLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_OPEN,
    ROLE_AGENT,
    ROLE_USER,
    Message,
    MessageState,
    Part,
)

from trunkline_client.accumulator import difference
from trunkline_client.builders import text_of
from trunkline_client.events import Delta, MessageChanged

_STYLES = {ROLE_USER: "bold cyan", ROLE_AGENT: "bold green"}
_UP_AND_CLEAR = "\x1b[1A\x1b[2K"


class Transcript:
    """Writes messages with authors, times and colours on a terminal, and as plain lines in a pipe.

    One open message at a time is written as it grows; messages that arrive meanwhile are written after it.
    """

    def __init__(self, console: Console, user: str, agent: str) -> None:
        self._console = console
        self._user = user
        self._agent = agent
        #: Id of the open message that is being written; empty while there is none.
        self.open_id = ""
        self._later: dict[str, Message] = {}
        #: Whether reasoning was written last.
        self._in_reasoning = False

    # Received.

    def on_message(self, message: Message) -> None:
        """Writes a message."""
        if self.open_id and message.id != self.open_id:
            self._later[message.id] = message
        elif message.state == MESSAGE_STATE_OPEN:
            self.open_id, self._in_reasoning = message.id, False
            self._write_prefix(message)
            for delta in difference(Message(), message) or ():
                self._write_addition(
                    delta.text, delta.reasoning, delta.part if delta.HasField("part") else None
                )
        else:
            self._write_message(message)

    def on_delta(self, delta: Delta) -> None:
        """Writes an addition to an open message."""
        if delta.message.id == self.open_id:
            self._write_addition(delta.text, delta.reasoning, delta.part)
        elif delta.message.id in self._later:
            self._later[delta.message.id] = delta.message

    def on_snapshot(self, message: Message) -> None:
        """Writes an open message again whose text is not what was written before."""
        if message.id == self.open_id:
            self._write("\n")
            self.open_id = ""
        self.on_message(message)

    def on_change(self, changed: MessageChanged) -> None:
        """Writes that a message ended, was edited or was recalled."""
        message_id = changed.change.message_id
        if message_id in self._later and changed.message is not None:
            self._later[message_id] = changed.message
        elif changed.change.kind != CHANGE_KIND_ENDED:
            recalled = changed.change.kind == CHANGE_KIND_RECALLED
            self.note("a message was recalled" if recalled else "a message was edited")
            if changed.message is not None and not recalled:
                self.on_message(changed.message)
        elif message_id == self.open_id:
            self._write("\n")
            self.open_id = ""
            self._note_end(changed)
            for message in list(self._later.values()):
                del self._later[message.id]
                self.on_message(message)

    def _note_end(self, changed: MessageChanged) -> None:
        state = changed.change.state
        if state != MESSAGE_STATE_COMPLETE:
            reason = changed.change.error.message
            name = MessageState.Name(state).removeprefix("MESSAGE_STATE_").lower()
            self.note(f"{name}: {reason}" if reason else name)

    def on_status(self, status: ReplyStatusFrame) -> None:
        """Writes that an answer is late."""
        if status.status == REPLY_STATUS_RETRYING:
            self.note("the agent has failed so far and is tried again")

    # Sent and noted.

    def on_sent(self, line: str, *, typed: bool) -> None:
        """Writes a line of the user; one that was typed is on the screen already and is replaced."""
        if not self._console.is_terminal:
            return
        if typed and not self.open_id:
            self._console.file.write(_UP_AND_CLEAR)
        self._write_line(self._user, _STYLES[ROLE_USER], line, None)

    def note(self, text: str) -> None:
        """Writes a note on the conversation; on a terminal only."""
        if self._console.is_terminal:
            self._console.print(Text(text, "dim"))

    # Lines.

    def _write_message(self, message: Message) -> None:
        if not message.parts and message.HasField("error"):
            self.note(f"failed: {message.error.message}")
            return
        self._write_line(self._name(message), self._style(message), text_of(message), _time_of(message))

    def _write_prefix(self, message: Message) -> None:
        if self._console.is_terminal:
            self._console.print(_prefix(self._name(message), self._style(message), _time_of(message)), end="")

    def _write_addition(self, text: str, reasoning: str, part: Part | None) -> None:
        if text:
            self._write(f"\n{text}" if self._in_reasoning else text)
            self._in_reasoning = False
        elif self._console.is_terminal and reasoning:
            self._write(reasoning, "dim italic")
            self._in_reasoning = True
        elif self._console.is_terminal and part is not None and part.HasField("tool_call"):
            self._write(f" [{part.tool_call.name} {part.tool_call.arguments}] ", "dim")
        elif part is not None and part.HasField("text"):
            self._write("\n" + part.text.text)

    def _write(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style), end="", soft_wrap=True)
        self._console.file.flush()

    def _write_line(self, author: str, style: str, text: str, time: datetime | None) -> None:
        if not self._console.is_terminal:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
            return
        self._console.print(_prefix(author, style, time).append(text))

    def _name(self, message: Message) -> str:
        author = message.author
        fallback = self._agent if author.role == ROLE_AGENT else author.user or "system"
        return author.name or fallback

    def _style(self, message: Message) -> str:
        return _STYLES.get(message.author.role, "bold magenta")


def _time_of(message: Message) -> datetime | None:
    return message.created_at.ToDatetime(UTC).astimezone() if message.HasField("created_at") else None


def _prefix(author: str, style: str, time: datetime | None) -> Text:
    clock = (time or datetime.now().astimezone()).strftime("%H:%M:%S")
    return Text.assemble((clock, "dim"), "  ", (author, style), "  ")
