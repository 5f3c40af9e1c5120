"""Heads of HTTP/1.1 requests on the listening port (RFC 9112), read once for every protocol on it."""

from __future__ import annotations

import re
from typing import NamedTuple

import h11
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused

from trunkline_edge.path_prefix import without_prefix

#: Bound of a request's first line and header fields together.
MAX_HEAD_BYTES = 16 * 1024
#: Bound of the empty lines before a request. One is enough for the clients that send any.
MAX_SKIPPED_BYTES = 64

_METHOD_BYTES = 32
_METHOD = rb"[!#$%%&'*+.^_`|~0-9A-Za-z-]{1,%d}" % _METHOD_BYTES
#: The first line, and the beginning of one.
_REQUEST_LINE = re.compile(_METHOD + rb" [^ ]+ HTTP/[0-9]\.[0-9]\r?")
_LINE_START = re.compile(_METHOD + rb"(?: .*|\r)?", re.DOTALL)
#: A lone LF ends a line, too, as h11 reads them.
_BLANK_LINE = re.compile(rb"\n\r?\n")
_EMPTY_LINES = re.compile(rb"(?:\r?\n)*")
_TLS_HANDSHAKE = b"\x16\x03"

_ABSOLUTE_FORM = re.compile(rb"(?:http|ws)s?://([^/?#]*)(.*)", re.IGNORECASE)
#: A host with its port, or nothing.
_HOST = re.compile(rb"[0-9A-Za-z._~!$&'()*+,;=%:\[\]-]*")


class HeadReader:
    """Collects the head of one request, and rejects what cannot become one as soon as that is certain."""

    __slots__ = ("_data", "_is_line_valid", "_searched", "_skipped")

    def __init__(self) -> None:
        self._data = bytearray()
        self._is_line_valid = False
        #: No blank line ends before this index.
        self._searched = 0
        #: Bytes of empty lines before the request.
        self._skipped = 0

    @property
    def is_empty(self) -> bool:
        """No byte of a request was received."""
        return not self._data

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Add bytes; return the head and the bytes behind it, or None if the head is not complete.

        Raises Refused.
        """
        self._data += data
        if not self._is_line_valid:
            self._check_line()
        end = _BLANK_LINE.search(self._data, self._searched, MAX_HEAD_BYTES)
        if end is not None:
            head, behind = bytes(self._data[: end.end()]), bytes(self._data[end.end() :])
            self._data.clear()
            return head, behind
        if len(self._data) >= MAX_HEAD_BYTES:
            if not self._is_line_valid:
                raise catalogue.REQUEST_LINE_TOO_LONG.refused(limit=MAX_HEAD_BYTES)
            raise catalogue.HEADERS_TOO_LARGE.refused(limit=MAX_HEAD_BYTES)
        self._searched = max(0, len(self._data) - 2)
        return None

    def _check_line(self) -> None:
        # Some clients send an empty line behind a body (RFC 9112, section 2.2).
        if self._data.startswith((b"\r\n", b"\n")):
            self._skip_empty_lines()
        if not self._data or self._data == b"\r":
            return
        if self._data.startswith(_TLS_HANDSHAKE):
            raise malformed("this port does not speak TLS: use http:// and ws://")
        end = self._data.find(b"\n", 0, MAX_HEAD_BYTES)
        if end >= 0:
            self._is_line_valid = _REQUEST_LINE.fullmatch(self._data, 0, end) is not None
        if not (self._is_line_valid or (end < 0 and _LINE_START.fullmatch(self._data[: _METHOD_BYTES + 1]))):
            raise malformed("the first line is no request line")

    def _skip_empty_lines(self) -> None:
        lines = _EMPTY_LINES.match(self._data)
        assert lines is not None
        self._skipped += lines.end()
        if self._skipped > MAX_SKIPPED_BYTES:
            raise malformed("too many empty lines before the request")
        del self._data[: lines.end()]


class RequestHead(NamedTuple):
    """The head of a request, in origin form; names of header fields are in lower case."""

    method: bytes
    target: bytes
    http_version: bytes
    headers: list[tuple[bytes, bytes]]


class RequestParser(h11.Connection):
    """Parses one request, for whichever protocol it turns out to be for, and writes the response of HTTP.

    `next_event` never goes beyond the request, so that the next one is selected anew.
    """

    def __init__(self, max_chunks: int, path_prefix: str = "") -> None:
        """`max_chunks` limits the chunks of the body; `path_prefix` is removed from the path."""
        super().__init__(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._max_chunks = max_chunks
        self._path_prefix = path_prefix.encode("ascii")
        self._chunks = 0
        self._request: h11.Request | None = None
        self.is_chunked = False
        #: Why the request is malformed; empty if it is not.
        self.problem = ""

    def parse_head(self, head: bytes) -> RequestHead:
        """Parse a whole head. Raises Refused."""
        self.receive_data(head)
        try:
            request = super().next_event()
        except h11.RemoteProtocolError as error:
            raise malformed(problem_of(error)) from None
        assert isinstance(request, h11.Request)
        # The list of h11 is slow to iterate.
        fields = list(request.headers)
        _check(RequestHead(request.method, request.target, request.http_version, fields))
        self.is_chunked = any(name == b"transfer-encoding" for name, _ in fields)
        served = without_prefix(_in_origin_form(request), self._path_prefix)
        self._request = served
        if served is not request:
            fields = list(served.headers)
        return RequestHead(served.method, served.target, served.http_version, fields)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return the next event of the request, which is the first. Raises RemoteProtocolError."""
        if self._request is not None:
            request, self._request = self._request, None
            return request
        if self.their_state is h11.IDLE:
            return h11.NEED_DATA
        try:
            event = super().next_event()
            if isinstance(event, h11.Data) and event.chunk_start:
                self._chunks += 1
                if self._chunks > self._max_chunks:
                    raise h11.RemoteProtocolError(f"the body has more than {self._max_chunks} chunks")
        except h11.RemoteProtocolError as error:
            self.problem = problem_of(error)
            raise
        return event


def _check(head: RequestHead) -> None:
    """Raises Refused for a version or header fields that HTTP does not allow."""
    version = head.http_version
    if version not in (b"1.1", b"1.0"):
        raise catalogue.HTTP_VERSION_UNSUPPORTED.refused(version=version.decode("ascii"))
    has_length = header_values(head, b"content-length") or version == b"1.0"
    if has_length and header_values(head, b"transfer-encoding"):
        raise malformed("Transfer-Encoding excludes Content-Length, and HTTP/1.0")
    if not all(map(_HOST.fullmatch, header_values(head, b"host"))):
        raise malformed("the host is invalid")


def _in_origin_form(request: h11.Request) -> h11.Request:
    """Return the request with a path as its target. Raises Refused."""
    if request.target.startswith(b"/"):
        return request
    host, target = _authority_and_target(request)
    if target == request.target:
        return request
    if _HOST.fullmatch(host) is None:
        raise malformed("the host is invalid")
    # The target's host replaces the header's (RFC 9112, section 3.2.2).
    headers = [(name, value) for name, value in request.headers.raw_items() if name.lower() != b"host"]
    return h11.Request(
        method=request.method,
        target=target,
        headers=[(b"Host", host), *headers],
        http_version=request.http_version,
    )


def _authority_and_target(request: h11.Request) -> tuple[bytes, bytes]:
    """Return the host and the origin form of a target in another form. Raises Refused."""
    if request.target == b"*" and request.method == b"OPTIONS":
        return b"", b"*"
    absolute = _ABSOLUTE_FORM.fullmatch(request.target)
    if absolute is None or not absolute[1]:
        raise malformed("the target is neither a path nor a URL of this server")
    path = absolute[2]
    return absolute[1], path if path.startswith(b"/") else b"/" + path


def header_values(request: RequestHead, name: bytes) -> list[bytes]:
    """The values of a header field, which may occur more than once; `name` is in lower case."""
    return [value for known, value in request.headers if known == name]


def decoded_headers(request: RequestHead) -> list[tuple[str, str]]:
    """The header fields, names in lower case."""
    return [(name.decode("ascii"), value.decode("latin-1")) for name, value in request.headers]


def tokens(request: RequestHead, name: bytes) -> set[bytes]:
    """The comma-separated tokens of a header field, in lower case."""
    return {token.strip().lower() for value in header_values(request, name) for token in value.split(b",")}


def announces_body(request: RequestHead) -> bool:
    """Whether a body follows the head."""
    length = header_values(request, b"content-length")
    return bool(header_values(request, b"transfer-encoding")) or any(int(value) for value in length)


def problem_of(error: h11.RemoteProtocolError) -> str:
    """The text of a parser's error, without what the client has sent: that may be secret."""
    return str(error).partition(":")[0]


def malformed(problem: str) -> Refused:
    """The refusal of a request that HTTP does not allow."""
    return catalogue.MALFORMED_REQUEST.refused(problem=problem)
