"""Routes paths by the templates of `google.api.http`, in a tree by segment."""

from __future__ import annotations

import re
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import unquote_to_bytes

T = TypeVar("T")

_VARIABLE = re.compile(r"\{([a-z_][a-z0-9_.]*)(?:=\*)?\}")
_LITERAL = re.compile(r"[\w.~-]+")


class Pattern(NamedTuple):
    """A parsed path template."""

    #: A literal, or None for a variable, which stands for one whole segment.
    segments: tuple[str | None, ...]
    #: The field paths that the variables set, in order.
    variables: tuple[str, ...]
    #: The text after the last segment's colon; empty for none.
    verb: str


def pattern_of(template: str) -> Pattern:
    """Parse a template. Raises ValueError for an unsupported form."""
    path, _, verb = template.partition(":")
    if not path.startswith("/") or not (verb == "" or _LITERAL.fullmatch(verb)):
        raise ValueError(f"{template} is not a path template")
    segments: list[str | None] = []
    variables = []
    for segment in path[1:].split("/"):
        if found := _VARIABLE.fullmatch(segment):
            variables.append(found[1])
            segments.append(None)
        elif _LITERAL.fullmatch(segment):
            segments.append(segment)
        else:
            raise ValueError(f"{template}: a variable must be one whole segment")
    return Pattern(tuple(segments), tuple(variables), verb)


class _Node(Generic[T]):
    __slots__ = ("ends", "literals", "variable")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[T]] = {}
        self.variable: _Node[T] | None = None
        #: By verb and HTTP method.
        self.ends: dict[str, dict[str, T]] = {}


class PathMatch(NamedTuple, Generic[T]):
    """The items at a path by HTTP method, and the values of its variables."""

    methods: dict[str, T]
    values: tuple[str, ...]


class PathRouter(Generic[T]):
    """Maps patterns and HTTP methods to items."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def add(self, http_method: str, pattern: Pattern, item: T) -> None:
        """Add an item. Raises ValueError if the pattern and method have one."""
        node = self._root
        for segment in pattern.segments:
            if segment is not None:
                node = node.literals.setdefault(segment, _Node())
            else:
                node.variable = node.variable or _Node()
                node = node.variable
        methods = node.ends.setdefault(pattern.verb, {})
        if http_method in methods:
            raise ValueError(f"{http_method} {pattern} is taken by {methods[http_method]}")
        methods[http_method] = item

    def find(self, raw_path: str) -> PathMatch[T] | None:
        """Match a path that is still percent-encoded, so that `%2F` and `%3A` are part of a value.

        Raises UnicodeDecodeError if an escape is not UTF-8.
        """
        *raw, last = raw_path[1:].split("/")
        segments = [_decoded(segment) for segment in raw]
        stem, colon, verb = last.rpartition(":")
        if colon and (found := self._find(self._root, [*segments, _decoded(stem)], _decoded(verb), ())):
            return found
        return self._find(self._root, [*segments, _decoded(last)], "", ())

    def _find(
        self, node: _Node[T], segments: list[str], verb: str, values: tuple[str, ...]
    ) -> PathMatch[T] | None:
        if not segments:
            methods = node.ends.get(verb)
            return PathMatch(methods, values) if methods else None
        segment, *rest = segments
        literal = node.literals.get(segment)
        if literal is not None and (found := self._find(literal, rest, verb, values)):
            return found
        if node.variable is None or not segment:
            return None
        return self._find(node.variable, rest, verb, (*values, segment))


def _decoded(segment: str) -> str:
    return unquote_to_bytes(segment).decode() if "%" in segment else segment
