"""Text without lone surrogates, which cannot be encoded. Pure.

A surrogate is half of a character, such as an emoji, in UTF-16. Python's strings may hold one: JSON decodes
to it when a string was cut in the middle of a character.
"""

from __future__ import annotations

REPLACEMENT = "\ufffd"


def well_formed(text: str) -> str:
    """The text with halves that stand side by side joined, and every other one replaced by U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class TextJoiner:
    """Text that is written piece by piece, and may be cut in the middle of a character."""

    def __init__(self) -> None:
        #: The first half of a character at the end of what was added.
        self._half = ""

    def add(self, text: str) -> str:
        """Returns what can be written now. A half at the end waits for the next piece."""
        text = self._half + text
        if self._half or not text.isascii():
            self._half = text[-1] if "\ud800" <= text[-1:] <= "\udbff" else ""
            text = well_formed(text.removesuffix(self._half))
        return text

    def end(self) -> str:
        """Returns what stands for a half that waits; nothing follows it."""
        half, self._half = self._half, ""
        return REPLACEMENT if half else ""
