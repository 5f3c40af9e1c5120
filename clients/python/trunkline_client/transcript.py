"""A conversation as it is shown: in a terminal, or as plain lines in a pipe."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.console import Console
from rich.text import Text
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
    """Who said what: with times and colours on a terminal, plain lines when piped.

    One open message at a time is shown as it grows; whatever comes meanwhile is shown after it.
    """

    def __init__(self, console: Console, you: str, agent: str) -> None:
        self._console = console
        self._you = you
        self._agent = agent
        #: The open message that is being shown; empty while none is.
        self.growing = ""
        self._later: dict[str, Message] = {}
        #: What was shown last was reasoning.
        self._thinking = False

    # What was heard.

    def said(self, message: Message) -> None:
        """A message came."""
        if self.growing and message.id != self.growing:
            self._later[message.id] = message
        elif message.state == MESSAGE_STATE_OPEN:
            self.growing, self._thinking = message.id, False
            self._head(message)
            for delta in difference(Message(), message) or ():
                self._add(delta.text, delta.reasoning, delta.part if delta.HasField("part") else None)
        else:
            self._whole(message)

    def grew(self, delta: Delta) -> None:
        """An open message has grown."""
        if delta.message.id == self.growing:
            self._add(delta.text, delta.reasoning, delta.part)
        elif delta.message.id in self._later:
            self._later[delta.message.id] = delta.message

    def replaced(self, message: Message) -> None:
        """An open message is another one than was shown."""
        if message.id == self.growing:
            self._write("\n")
            self.growing = ""
        self.said(message)

    def changed(self, changed: MessageChanged) -> None:
        """A message has ended, or was edited or recalled."""
        message_id = changed.change.message_id
        if message_id in self._later and changed.message is not None:
            self._later[message_id] = changed.message
        elif changed.change.kind != CHANGE_KIND_ENDED:
            recalled = changed.change.kind == CHANGE_KIND_RECALLED
            self.note("a message was taken back" if recalled else "a message was edited")
            if changed.message is not None and not recalled:
                self.said(changed.message)
        elif message_id == self.growing:
            self._write("\n")
            self.growing = ""
            self._note_end(changed)
            for message in list(self._later.values()):
                del self._later[message.id]
                self.said(message)

    def _note_end(self, changed: MessageChanged) -> None:
        state = changed.change.state
        if state != MESSAGE_STATE_COMPLETE:
            why = changed.change.error.message
            name = MessageState.Name(state).removeprefix("MESSAGE_STATE_").lower()
            self.note(f"{name}: {why}" if why else name)

    # What was done here.

    def you_said(self, line: str, *, typed: bool) -> None:
        """A line was sent. One that was typed is on the screen already, and is replaced."""
        if not self._console.is_terminal:
            return
        if typed and not self.growing:
            self._console.file.write(_UP_AND_CLEAR)
        self._line(self._you, _STYLES[ROLE_USER], line, None)

    def note(self, text: str) -> None:
        """Something happened that nobody said."""
        if self._console.is_terminal:
            self._console.print(Text(text, "dim"))

    # Lines.

    def _whole(self, message: Message) -> None:
        self._line(self._name(message), self._style(message), text_of(message), _when(message))

    def _head(self, message: Message) -> None:
        if self._console.is_terminal:
            self._console.print(_prefix(self._name(message), self._style(message), _when(message)), end="")

    def _add(self, text: str, reasoning: str, part: Part | None) -> None:
        if text:
            self._write(f"\n{text}" if self._thinking else text)
            self._thinking = False
        elif self._console.is_terminal and reasoning:
            self._write(reasoning, "dim italic")
            self._thinking = True
        elif self._console.is_terminal and part is not None and part.HasField("tool_call"):
            self._write(f" [{part.tool_call.name} {part.tool_call.arguments}] ", "dim")
        elif part is not None and part.HasField("text"):
            self._write("\n" + part.text.text)

    def _write(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style), end="", soft_wrap=True)
        self._console.file.flush()

    def _line(self, who: str, style: str, what: str, when: datetime | None) -> None:
        if not self._console.is_terminal:
            self._console.print(what, markup=False, highlight=False, soft_wrap=True)
            return
        self._console.print(_prefix(who, style, when).append(what))

    def _name(self, message: Message) -> str:
        author = message.author
        fallback = self._agent if author.role == ROLE_AGENT else author.user or "system"
        return author.name or fallback

    def _style(self, message: Message) -> str:
        return _STYLES.get(message.author.role, "bold magenta")


def _when(message: Message) -> datetime | None:
    return message.created_at.ToDatetime(UTC).astimezone() if message.HasField("created_at") else None


def _prefix(who: str, style: str, when: datetime | None) -> Text:
    clock = (when or datetime.now().astimezone()).strftime("%H:%M:%S")
    return Text.assemble((clock, "dim"), "  ", (who, style), "  ")
