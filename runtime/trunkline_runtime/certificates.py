"""Certificates in PEM files, reloaded when the files change."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import structlog
from cryptography.x509 import (
    DNSName,
    ExtensionNotFound,
    SubjectAlternativeName,
    UniformResourceIdentifier,
    load_pem_x509_certificate,
)

_log = structlog.get_logger()

#: Files are checked for changes at most this often.
CHECK_INTERVAL_S = 1.0

#: Suites of TLS 1.2 with forward secrecy and AEAD, as gRPC has them; TLS 1.3 has no others.
_TLS_1_2_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"

#: Trusted authorities of Linux distributions and macOS.
_SYSTEM_AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)

T = TypeVar("T")

#: Identifies a version of a file: inode, modification time and size; None if it is absent.
_FileStamp = tuple[int, int, int] | None


class TlsError(Exception):
    """A certificate or key is unusable; the text says in one line which, and why."""


class CertificatePair(NamedTuple):
    """A certificate chain and its key, both PEM."""

    certificate: bytes
    key: bytes


def read_pair(certificate: Path, key: Path) -> CertificatePair:
    """Read a certificate and its key. Raises TlsError, also if the two do not match."""
    pair = CertificatePair(_read(certificate), _read(key))
    _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, key)
    return pair


def read_authorities(path: Path) -> bytes:
    """Read the certificates of authorities, PEM. Raises TlsError."""
    content = _read(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=content.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(f"{path} holds no certificates (PEM): {_reason(error)}") from None
    return content


def alternative_names(path: Path) -> list[str]:
    """The DNS names and URIs in the first certificate of a PEM file; none if it cannot be read."""
    try:
        extension = load_pem_x509_certificate(path.read_bytes()).extensions.get_extension_for_class(
            SubjectAlternativeName
        )
    except (OSError, ValueError, ExtensionNotFound):
        return []
    kinds = (DNSName, UniformResourceIdentifier)
    return [name for kind in kinds for name in extension.value.get_values_for_type(kind)]


def system_authorities() -> bytes | None:
    """The authorities that this machine trusts, PEM; None if not found, which makes gRPC use its own list."""
    default = ssl.get_default_verify_paths().cafile
    for path in [Path(each) for each in (default, *_SYSTEM_AUTHORITIES) if each]:
        if path.is_file():
            return _read(path)
    return None


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """The TLS context of a server for HTTP/1.1 and WebSockets. Raises TlsError."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # Clients could force the server to renegotiate endlessly.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    context.set_ciphers(_TLS_1_2_CIPHERS)
    _load(context, certificate, key)
    return context


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except (OSError, ValueError) as error:
        problem = f"the certificate in {certificate} cannot be used with the key in {key}"
        raise TlsError(f"{problem}: {_reason(error)}") from None


def _no_passphrase() -> str:
    """Fail instead of prompting for a passphrase on the terminal."""
    raise ValueError("the key has a passphrase; use one without")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{path} cannot be read: {error.strerror}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason.lower().replace("_", " ") if error.reason else "not PEM"
    return str(error.strerror if isinstance(error, OSError) else error)


class ReloadingFile(Generic[T]):
    """A value read from files, and read again on access after one of them has changed.

    Checks the files at most once per CHECK_INTERVAL_S. If the new content is unusable, it logs that once and
    keeps the previous value. Thread-safe. The constructor raises TlsError.
    """

    def __init__(
        self, paths: Sequence[Path], read: Callable[[], T], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._paths = paths
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._check_at = 0.0
        self._stamps = self._stat()
        self._current = read()

    @property
    def current(self) -> T:
        """The value of the last usable content of the files."""
        with self._lock:
            now = self._clock()
            if now >= self._check_at:
                self._check_at = now + CHECK_INTERVAL_S
                stamps = self._stat()
                if stamps != self._stamps:
                    self._reload(stamps)
            return self._current

    def _reload(self, stamps: list[_FileStamp]) -> None:
        files = ", ".join(str(path) for path in self._paths)
        try:
            value = self._read()
        except TlsError as error:
            self._stamps = stamps
            _log.warning("changed certificates are unusable; the old ones stay in use", problem=str(error))
            return
        if self._stat() == stamps:
            self._stamps, self._current = stamps, value
            _log.info("certificates were reloaded", files=files)
        # Otherwise the files are changing now, and the value may mix two versions; the next check reloads it.

    def _stat(self) -> list[_FileStamp]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> _FileStamp:
    try:
        stat = path.stat()
    except OSError:
        return None
    return (stat.st_ino, stat.st_mtime_ns, stat.st_size)
