"""Client-side state of streamed messages, by the three rules of docs/protocol.md."""

from __future__ import annotations

from typing import Any

Frame = dict[str, Any]


def words(parts: list[Frame]) -> str:
    """Return the text of message parts."""
    return "".join(part.get("text", "") for part in parts if part["type"] == "text")


class MessageTexts:
    """Text so far and state, by message id; fails on frames that violate the rules."""

    def __init__(self) -> None:
        self.text: dict[str, str] = {}
        self.state: dict[str, str] = {}
        #: Messages that arrived complete.
        self.whole: set[str] = set()
        self._last = ""

    def connected(self) -> None:
        """Forget the last message on a new connection."""
        self._last = ""

    def replies(self) -> dict[str, str]:
        """Return the states of streamed messages."""
        return {ident: state for ident, state in self.state.items() if ident not in self.whole}

    def take(self, frame: Frame) -> None:
        """Apply a frame."""
        kind = frame["type"]
        if kind == "message":
            self._put(frame)
        elif kind == "delta":
            self._last = frame.get("message_id", self._last)
            assert self.state.get(self._last) == "open", f"{frame} adds to {self._last!r}, which is not open"
            self.text[self._last] += frame.get("text", "")
        elif kind == "change":
            if message := frame.get("message"):
                self._put(message)
            ident = frame["message_id"]
            was = self.state.get(ident)
            assert was in (None, "open", frame["state"]) or frame["kind"] != "ended", f"{ident} was {was}"
            self.state[ident] = frame["state"]

    def _put(self, message: Frame) -> None:
        ident = message["id"]
        self.text[ident] = words(message["parts"])
        self.state[ident] = message["state"]
        if message["state"] == "open":
            self._last = ident
        elif "next_index" not in message:
            self.whole.add(ident)
