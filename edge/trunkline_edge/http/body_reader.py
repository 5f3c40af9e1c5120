"""Takes the bodies of requests, within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request
from trunkline.v1 import catalogue

#: The router takes messages of 12 MiB; JSON is a little longer.
MAX_BODY_BYTES = 13 << 20

#: Of all requests together; beyond it they are refused with OVERLOADED.
MAX_TOTAL_BYTES = 64 << 20

#: For one whole body.
BODY_TIMEOUT_S = 30.0

#: A body that is too large is read on and dropped up to here: who sends it looks for the answer at its end.
MAX_DROPPED_BYTES = 64 << 20

JSON = "application/json"


class BodyReader:
    """Reads JSON bodies: each at most 13 MiB and 30 s long, all together at most 64 MiB."""

    def __init__(self) -> None:
        self.held_bytes = 0

    @asynccontextmanager
    async def body(self, request: Request, wanted: bool) -> AsyncIterator[bytes]:
        """The body, held until it has been dealt with; empty where none is `wanted`.

        Raises Refused for one of another type, too long or too late, or where too much is held already.
        """
        declared = request.headers.get("content-length", "0")
        if declared == "0" and "transfer-encoding" not in request.headers:
            yield b""
            return
        if not wanted:
            raise catalogue.INVALID_ARGUMENT.refused(field="body", problem="this call takes none")
        _check_type(request)
        async with self.of_any_type(request) as body:
            yield body

    @asynccontextmanager
    async def of_any_type(self, request: Request) -> AsyncIterator[bytes]:
        """The body, whatever its type, held until it has been dealt with. Raises Refused like `body`."""
        held = _Held(self)
        try:
            try:
                async with asyncio.timeout(BODY_TIMEOUT_S):
                    await held.read(request)
            except TimeoutError:
                raise catalogue.BODY_TIMEOUT.refused(limit_s=f"{BODY_TIMEOUT_S:g}") from None
            yield bytes(held.body)
        finally:
            self.held_bytes -= len(held.body)


class _Held:
    """One body, as far as it has come."""

    def __init__(self, bodies: BodyReader) -> None:
        self.body = bytearray()
        self._bodies = bodies

    async def read(self, request: Request) -> None:
        """Take all of it. Raises Refused."""
        dropped = 0
        async for piece in request.stream():
            if dropped or len(self.body) + len(piece) > MAX_BODY_BYTES:
                dropped += len(piece)
                if dropped > MAX_DROPPED_BYTES:
                    break
                continue
            if self._bodies.held_bytes + len(piece) > MAX_TOTAL_BYTES:
                raise catalogue.OVERLOADED.refused(problem="other requests' bodies")
            self.body += piece
            self._bodies.held_bytes += len(piece)
        if dropped:
            raise catalogue.BODY_TOO_LARGE.refused(limit=MAX_BODY_BYTES)


def _check_type(request: Request) -> None:
    """Raises Refused for a body that is not plain JSON in UTF-8."""
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().replace('"', "")
    is_json = kind.strip().lower() == JSON and charset in ("", "charset=utf-8")
    if not is_json or request.headers.get("content-encoding", "identity") != "identity":
        raise catalogue.UNSUPPORTED_MEDIA_TYPE.refused(wanted=f"{JSON} in UTF-8, not compressed")
