"""Certificates: read from PEM files, and read anew when these have changed."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import structlog

_log = structlog.get_logger()

#: How long what was read is used without another look at the files.
LOOK_EVERY_S = 1.0

#: Where Linux distributions and macOS keep the authorities that they trust.
_SYSTEM_AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)

T = TypeVar("T")

#: What tells a file from the one that was there before: its inode, time and size.
_Mark = tuple[int, int, int] | None


class TlsError(Exception):
    """Certificates or keys cannot be used; the text says in one line which, and why."""


class CertificatePair(NamedTuple):
    """A certificate, with those that vouch for it, and its key; both PEM."""

    certificate: bytes
    key: bytes


def read_pair(certificate: Path, key: Path) -> CertificatePair:
    """A certificate and its key. Raises TlsError, also where the two do not belong together."""
    pair = CertificatePair(_read(certificate), _read(key))
    _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, key)
    return pair


def read_authorities(path: Path) -> bytes:
    """Certificates of authorities, PEM. Raises TlsError."""
    found = _read(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=found.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(f"{path} holds no certificates (PEM): {_reason(error)}") from None
    return found


def system_authorities() -> bytes | None:
    """Those that this machine trusts, PEM; None where they are not found, for gRPC's own list of them."""
    default = ssl.get_default_verify_paths().cafile
    for path in [Path(each) for each in (default, *_SYSTEM_AUTHORITIES) if each]:
        if path.is_file():
            return _read(path)
    return None


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """What a server of HTTP/1.1 and WebSockets needs for TLS. Raises TlsError."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # A client could have the server do it over and over.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _load(context, certificate, key)
    return context


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except (OSError, ValueError) as error:
        problem = f"the certificate in {certificate} cannot be used with the key in {key}"
        raise TlsError(f"{problem}: {_reason(error)}") from None


def _no_passphrase() -> str:
    """Instead of asking for one on the terminal."""
    raise ValueError("the key has a passphrase, and nobody is there to give it")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{path} cannot be read: {error.strerror}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason.lower().replace("_", " ") if error.reason else "it is no PEM"
    return str(error.strerror if isinstance(error, OSError) else error)


class ReloadingFile(Generic[T]):
    """What was read from files; read anew, when it is asked for, if one of them has changed.

    Looks at the files no more than once in LOOK_EVERY_S. What cannot be used is said once in the log,
    and what was read before stays. May be asked from any thread. Making one raises TlsError.
    """

    def __init__(
        self, paths: Sequence[Path], read: Callable[[], T], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._paths = paths
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._look_at = 0.0
        self._marks = self._look()
        self._current = read()

    @property
    def current(self) -> T:
        """What the files hold, or held when they were last of use."""
        with self._lock:
            now = self._clock()
            if now >= self._look_at:
                self._look_at = now + LOOK_EVERY_S
                marks = self._look()
                if marks != self._marks:
                    self._read_anew(marks)
            return self._current

    def _read_anew(self, marks: list[_Mark]) -> None:
        files = ", ".join(str(path) for path in self._paths)
        try:
            found = self._read()
        except TlsError as error:
            self._marks = marks
            _log.warning("certificates have changed and are of no use; the old ones stay", problem=str(error))
            return
        if self._look() == marks:
            self._marks, self._current = marks, found
            _log.info("certificates were read anew", files=files)
        # Else they change just now, and what was read may be some of both; the next look takes them.

    def _look(self) -> list[_Mark]:
        return [_mark(path) for path in self._paths]


def _mark(path: Path) -> _Mark:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size)
