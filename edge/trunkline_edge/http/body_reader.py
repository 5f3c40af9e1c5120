"""Reads request bodies within bounds of size, memory and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request
from trunkline.v1 import catalogue

from trunkline_edge.transport.body_budget import MAX_BODY_BYTES, MAX_DROPPED_BYTES, BodyBudget
from trunkline_edge.transport.body_type import JSON, check_type

#: Time limit for one whole body, unless another is set.
BODY_TIMEOUT_S = 30.0


class BodyReader:
    """Buffers bodies: each at most 13 MiB, read within `timeout_s`, and all within the budget.

    `max_bytes` lowers the bound of one body. A body whose length is stated and does not fit is refused before
    any of it is read.
    """

    def __init__(self, timeout_s: float = BODY_TIMEOUT_S, budget: BodyBudget | None = None) -> None:
        self.timeout_s = timeout_s
        self.budget = budget or BodyBudget()

    @asynccontextmanager
    async def json(
        self, request: Request, share: str, expected: bool, max_bytes: int | None = None
    ) -> AsyncIterator[bytes]:
        """A JSON body, which counts as buffered until the context ends; empty if there is none.

        Raises Refused for a body that is not `expected`, of another type, too large, too late, or over a
        bound of many bodies.
        """
        if expected:
            check_body_type(request)
        if not _has_body(request):
            yield b""
            return
        if not expected:
            raise catalogue.INVALID_ARGUMENT.refused(field="body", problem="this call takes none")
        async with self.of_any_type(request, share, max_bytes) as body:
            yield body

    @asynccontextmanager
    async def of_any_type(
        self, request: Request, share: str, max_bytes: int | None = None
    ) -> AsyncIterator[bytes]:
        """A body of any type, which counts as buffered until the context ends. Raises Refused like `json`."""
        length = request.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length[:12]) <= MAX_BODY_BYTES:
            self.budget.check(share, int(length), int(length))
        buffer = _BodyBuffer(self, share)
        try:
            try:
                async with asyncio.timeout(self.timeout_s):
                    await buffer.fill(request, max_bytes)
            except TimeoutError:
                raise catalogue.BODY_TIMEOUT.refused(limit_s=f"{self.timeout_s:g}") from None
            yield bytes(buffer.body)
        finally:
            self.budget.release(share, len(buffer.body))


class _BodyBuffer:
    """The received part of one body."""

    def __init__(self, reader: BodyReader, share: str) -> None:
        self.body = bytearray()
        self._reader = reader
        self._share = share

    async def fill(self, request: Request, max_bytes: int | None) -> None:
        """Read the whole body. Raises Refused."""
        limit = min(MAX_BODY_BYTES, max_bytes or MAX_BODY_BYTES)
        dropped = 0
        async for chunk in request.stream():
            if dropped or len(self.body) + len(chunk) > limit:
                dropped += len(chunk)
                if dropped > MAX_DROPPED_BYTES:
                    break
                continue
            self._reader.budget.reserve(self._share, len(chunk), len(self.body))
            self.body += chunk
        if dropped:
            raise catalogue.BODY_TOO_LARGE.refused(limit=limit)


def _has_body(request: Request) -> bool:
    return request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers


def check_body_type(request: Request, wanted: str = JSON) -> None:
    """Raises Refused unless the body is uncompressed and of the type; an empty one may be of no type."""
    content_type = request.headers.get("content-type")
    if content_type is not None or _has_body(request):
        check_type(content_type or "", request.headers.get("content-encoding", "identity"), wanted)
