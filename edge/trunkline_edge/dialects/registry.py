"""The dialects of an edge, and the lookup of the one at a path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from trunkline_edge.dialects.ai_sdk import ui_chat as ai_sdk
from trunkline_edge.dialects.dialect import Clock, Dialect, ExchangeRoute
from trunkline_edge.dialects.langbot import chat_dialect as langbot
from trunkline_edge.dialects.langbot import embed_dialect as langbot_embed
from trunkline_edge.dialects.maim import api as maim_api
from trunkline_edge.dialects.maim import socket_io_dialect as maim_socket_io
from trunkline_edge.dialects.maim import tenant as maim
from trunkline_edge.dialects.native import events as native_events
from trunkline_edge.dialects.native.handshake import NATIVE
from trunkline_edge.dialects.openai import completion_routes as openai
from trunkline_edge.dialects.paths import Path

#: Factories of the dialects, in the order in which their paths are tried.
DIALECTS: tuple[Callable[[Clock], Dialect], ...] = (
    lambda clock: NATIVE,
    native_events.make,
    maim.make,
    maim_api.make,
    maim_socket_io.make,
    langbot.make,
    langbot_embed.make,
    openai.make,
    ai_sdk.make,
)


class RouteMatch(NamedTuple):
    """The dialect at a path, with the values of the path's parameters."""

    dialect: Dialect
    parameters: dict[str, str]


class ExchangeMatch(NamedTuple):
    """The exchanges at a path, by method, with the values of the path's parameters."""

    dialect: Dialect
    routes: dict[str, ExchangeRoute]
    parameters: dict[str, str]


class DialectRegistry:
    """Finds the dialect that serves a path."""

    def __init__(self, clock: Clock) -> None:
        self.dialects = [make(clock) for make in DIALECTS]

    def socket(self, path: str) -> RouteMatch | None:
        """The dialect of WebSockets at this path, which is still encoded and has no query."""
        return self._find(path, lambda dialect: dialect.websocket_paths)

    def stream(self, path: str) -> RouteMatch | None:
        """The dialect of event streams at this path, likewise."""
        return self._find(path, lambda dialect: dialect.event_stream_paths)

    def exchange(self, path: str) -> ExchangeMatch | None:
        """The exchanges at this path, likewise."""
        for dialect in self.dialects:
            routes: dict[str, ExchangeRoute] = {}
            for route in dialect.exchanges:
                if (parameters := route.path.match(path)) is not None:
                    routes[route.method] = route
                    values = parameters
            if routes:
                return ExchangeMatch(dialect, routes, values)
        return None

    def engine_io(self, path: str) -> RouteMatch | None:
        """The dialect of Engine.IO sessions at this path, likewise."""
        return self._find(path, lambda dialect: dialect.engine_io_paths)

    def _find(self, path: str, templates: Callable[[Dialect], Sequence[Path]]) -> RouteMatch | None:
        for dialect in self.dialects:
            for template in templates(dialect):
                if (parameters := template.match(path)) is not None:
                    return RouteMatch(dialect, parameters)
        return None
