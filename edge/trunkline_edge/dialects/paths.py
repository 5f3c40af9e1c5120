"""Path templates with parameters, such as `/ws/{tenant}/{platform}`."""

from __future__ import annotations

from urllib.parse import unquote


class Path:
    """A template of fixed segments, and of parameters that each stand for one whole segment."""

    __slots__ = ("_segments", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._segments = text.split("/")

    def match(self, path: str) -> dict[str, str] | None:
        """The decoded parameters of a matching path, which is still encoded and has no query; None otherwise.

        A parameter is never empty. `%2F` is decoded after the path was split, so it is no separator. A
        path that is not UTF-8 does not match.
        """
        segments = path.split("/")
        if len(segments) != len(self._segments):
            return None
        parameters = {}
        for given, expected in zip(segments, self._segments, strict=True):
            if expected.startswith("{"):
                value = _decoded(given)
                if not value:
                    return None
                parameters[expected[1:-1]] = value
            elif given != expected:
                return None
        return parameters

    def __repr__(self) -> str:
        return f"<Path {self.text}>"


def _decoded(segment: str) -> str:
    """The segment, decoded; empty if it is not UTF-8."""
    try:
        value = unquote(segment, errors="strict")
        value.encode()
    except UnicodeError:
        return ""
    return value
