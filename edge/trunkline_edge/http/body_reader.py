"""Reads request bodies within bounds of size, memory and time."""

from __future__ import annotations

import asyncio
from codecs import lookup
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import Message

from starlette.requests import Request
from trunkline.v1 import catalogue

#: The router accepts messages of 12 MiB; their JSON is a little longer.
MAX_BODY_BYTES = 13 << 20

#: Bounds of all buffered bodies together, and of those of one share; beyond them requests are rejected with
#: OVERLOADED.
MAX_TOTAL_BYTES = 64 << 20
MAX_SHARE_BYTES = 2 * MAX_BODY_BYTES

#: Bodies up to here are always read, so that large ones cannot keep them out. The number of HTTP connections
#: bounds them.
SMALL_BODY_BYTES = 16 << 10

#: Time limit for one whole body, unless another is set.
BODY_TIMEOUT_S = 30.0

#: A body that is too large is read and dropped up to here, because clients read the response after sending.
MAX_DROPPED_BYTES = 64 << 20

JSON = "application/json"


class BodyReader:
    """Buffers bodies: each at most 13 MiB, read within `timeout_s`.

    A share, which is a tenant's or that of all strangers, has 26 MiB at one time, and all together 64 MiB, so
    that none takes all of it. Bodies up to 16 KiB are read in any case. `max_bytes` lowers the bound of one
    body. A body whose length is stated and does not fit is refused before any of it is read.
    """

    def __init__(self, timeout_s: float = BODY_TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self.buffered_bytes = 0
        #: Without shares that have none.
        self._bytes_of_share: dict[str, int] = {}

    def reserve(self, share: str, size: int, buffered: int = 0) -> None:
        """Count bytes of a body as buffered; `buffered` of it are already. Raises Refused OVERLOADED."""
        self._check(share, size, buffered + size)
        self.buffered_bytes += size
        self._bytes_of_share[share] = self._bytes_of_share.get(share, 0) + size

    def release(self, share: str, size: int) -> None:
        """Count them as buffered no longer."""
        self.buffered_bytes -= size
        rest = self._bytes_of_share.get(share, 0) - size
        if rest > 0:
            self._bytes_of_share[share] = rest
        else:
            self._bytes_of_share.pop(share, None)

    def _check(self, share: str, size: int, whole: int) -> None:
        """Check for `size` more bytes of a body that then has `whole`."""
        if whole <= SMALL_BODY_BYTES:
            return
        if self.buffered_bytes + size > MAX_TOTAL_BYTES:
            raise catalogue.OVERLOADED.refused(problem="other requests' bodies")
        if self._bytes_of_share.get(share, 0) + size > MAX_SHARE_BYTES:
            problem = "other requests' bodies of this tenant" if share else "bodies of callers with new keys"
            raise catalogue.OVERLOADED.refused(problem=problem)

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
            self._check(share, int(length), int(length))
        buffer = _BodyBuffer(self, share)
        try:
            try:
                async with asyncio.timeout(self.timeout_s):
                    await buffer.fill(request, max_bytes)
            except TimeoutError:
                raise catalogue.BODY_TIMEOUT.refused(limit_s=f"{self.timeout_s:g}") from None
            yield bytes(buffer.body)
        finally:
            self.release(share, len(buffer.body))


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
            self._reader.reserve(self._share, len(chunk), len(self.body))
            self.body += chunk
        if dropped:
            raise catalogue.BODY_TOO_LARGE.refused(limit=limit)


def _has_body(request: Request) -> bool:
    return request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers


def check_body_type(request: Request, wanted: str = JSON) -> None:
    """Raises Refused unless the body is uncompressed and of the type; an empty one may be of no type.

    JSON must be in UTF-8. Web pages can send other types, empty bodies included, to any site without asking
    first; JSON takes a preflight.
    """
    content_type = request.headers.get("content-type")
    if content_type is None and not _has_body(request):
        return
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if not _is_type(content_type or "", wanted) or encoding != "identity":
        text = f"{JSON} in UTF-8" if wanted == JSON else wanted
        raise catalogue.UNSUPPORTED_MEDIA_TYPE.refused(wanted=f"{text}, not compressed")


def _is_type(content_type: str, wanted: str) -> bool:
    """Whether a Content-Type is the wanted one, in UTF-8, however it is spelled."""
    parsed = Message()
    parsed["content-type"] = content_type
    try:
        charset = lookup(str(parsed.get_param("charset", "utf-8"))).name
    except LookupError:
        return False
    return parsed.get_content_type() == wanted and charset in ("utf-8", "ascii")
