"""Paths with parameters, such as `/ws/{tenant}/{platform}`."""

from __future__ import annotations

from urllib.parse import unquote


class Path:
    """A path of fixed segments and parameters, each of which stands for one whole segment."""

    __slots__ = ("_segments", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._segments = text.split("/")

    def match(self, path: str) -> dict[str, str] | None:
        """The parameters, decoded, if the path (still encoded, without a query) is one of these.

        A parameter is never empty, and never holds an encoded slash that would be mistaken for a
        separator: `%2F` is decoded after the segments were told apart. What is not UTF-8 is no path of these.
        """
        segments = path.split("/")
        if len(segments) != len(self._segments):
            return None
        found = {}
        for given, expected in zip(segments, self._segments, strict=True):
            if expected.startswith("{"):
                value = _decoded(given)
                if not value:
                    return None
                found[expected[1:-1]] = value
            elif given != expected:
                return None
        return found

    def __repr__(self) -> str:
        return f"<Path {self.text}>"


def _decoded(segment: str) -> str:
    """Empty where it is not UTF-8."""
    try:
        value = unquote(segment, errors="strict")
        value.encode()
    except UnicodeError:
        return ""
    return value
