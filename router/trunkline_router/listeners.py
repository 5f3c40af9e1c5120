"""Binds the router's listeners and verifies that their settings are safe."""

from __future__ import annotations

import grpc
import grpc.aio
import structlog
from trunkline_runtime.certificates import (
    CertificatePair,
    ReloadingFile,
    TlsError,
    read_authorities,
    read_pair,
)
from trunkline_runtime.listen_address import ListenAddress
from trunkline_runtime.loopback import is_loopback_host
from trunkline_runtime.process import StartError

from trunkline_router.certificate_names import CertificateNames
from trunkline_router.rpc.link_verifier import LinkVerifier
from trunkline_router.settings import RouterSettings

_log = structlog.get_logger()

_LINKS_UNPROTECTED = (
    "is not on loopback, so anyone who reaches it could act as an edge. Set TRUNKLINE_LINK_KEY to a key that"
    " edges must send, or TRUNKLINE_LINK_LISTEN and TRUNKLINE_TLS_CLIENT_CA for a second address where edges"
    " must present certificates. If nobody else can reach the address, set TRUNKLINE_INSECURE_LINKS=true."
)


def check(settings: RouterSettings) -> None:
    """Check the settings. Raises StartError if one is missing or links would be open unintentionally."""
    requirements = [
        ("TRUNKLINE_TLS_CERT", settings.tls_cert, "TRUNKLINE_TLS_KEY", settings.tls_key),
        ("TRUNKLINE_TLS_KEY", settings.tls_key, "TRUNKLINE_TLS_CERT", settings.tls_cert),
        ("TRUNKLINE_LINK_LISTEN", settings.link_listen, "TRUNKLINE_TLS_CLIENT_CA", settings.tls_client_ca),
        ("TRUNKLINE_TLS_CLIENT_CA", settings.tls_client_ca, "TRUNKLINE_LINK_LISTEN", settings.link_listen),
        ("TRUNKLINE_LINK_LISTEN", settings.link_listen, "TRUNKLINE_TLS_CERT", settings.tls_cert),
        ("TRUNKLINE_LINK_NAMES", settings.link_names, "TRUNKLINE_LINK_LISTEN", settings.link_listen),
    ]
    for name, value, required, other_value in requirements:
        if value and not other_value:
            raise StartError(f"{name} requires {required}, which is not set.")
    is_protected = settings.link_key.get_secret_value() or settings.link_listen or settings.insecure_links
    if not (is_protected or _is_local(settings.router_listen)):
        raise StartError(f"TRUNKLINE_ROUTER_LISTEN={settings.router_listen} {_LINKS_UNPROTECTED}")


def link_verifier(settings: RouterSettings) -> LinkVerifier:
    """Build the verifier of edges that the settings ask for.

    A link without credentials is accepted on loopback only if no listener is public.
    """
    listeners = [each for each in (settings.router_listen, settings.link_listen) if each]
    return LinkVerifier(
        settings.link_key.get_secret_value(),
        by_certificate=bool(settings.link_listen),
        names=CertificateNames(settings.link_names) if settings.link_names else None,
        from_loopback=all(map(_is_local, listeners)),
        from_anywhere=settings.insecure_links,
    )


def bind(server: grpc.aio.Server, settings: RouterSettings) -> tuple[str, str]:
    """Bind the listeners. Returns their addresses; the second, for links with certificates, may be empty.

    Raises StartError if an address is not available or a certificate cannot be used.
    """
    try:
        own = _TlsFiles(settings, for_links=False).credentials() if settings.tls_cert else None
        for_links = _TlsFiles(settings, for_links=True).credentials() if settings.link_listen else None
    except TlsError as error:
        names = "TRUNKLINE_TLS_CERT, TRUNKLINE_TLS_KEY and TRUNKLINE_TLS_CLIENT_CA"
        raise StartError(f"{error}. Check the files named by {names}.") from None
    if own is None and not _is_local(settings.router_listen):
        _log.warning("gRPC is unencrypted, API keys included; set TRUNKLINE_TLS_CERT")
    listening = _listen(server, settings.router_listen, own, "TRUNKLINE_ROUTER_LISTEN")
    if for_links is None:
        return listening, ""
    if not settings.link_names:
        _log.warning("every certificate by TRUNKLINE_TLS_CLIENT_CA is an edge; set TRUNKLINE_LINK_NAMES")
    return listening, _listen(server, settings.link_listen, for_links, "TRUNKLINE_LINK_LISTEN")


def _listen(
    server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None, variable: str
) -> str:
    parsed = ListenAddress.parse(address)
    # gRPC has no name for all interfaces but the addresses.
    target = address if parsed.host else f"[::]:{parsed.port}"
    try:
        if credentials is None:
            port: int = server.add_insecure_port(target)
        else:
            port = server.add_secure_port(target, credentials)
    except RuntimeError as error:
        problem = f"cannot listen on {address}: is another router running?"
        raise StartError(f"{problem} Set {variable} to use another address.") from error
    return str(parsed._replace(port=port))


class _TlsFiles:
    """A listener's certificate, and the authority of its clients'; reloaded when the files change.

    gRPC asks for a change at each new connection.
    """

    def __init__(self, settings: RouterSettings, *, for_links: bool) -> None:
        """Read the files. Raises TlsError."""
        assert settings.tls_cert is not None
        assert settings.tls_key is not None
        self._certificate, self._key = settings.tls_cert, settings.tls_key
        self._authorities = settings.tls_client_ca if for_links else None
        paths = [self._certificate, self._key]
        if self._authorities is not None:
            paths.append(self._authorities)
        self._files = ReloadingFile(paths, self._read)
        self._in_use = self._files.current

    def credentials(self) -> grpc.ServerCredentials:
        """Build the credentials of one listener."""
        return grpc.dynamic_ssl_server_credentials(
            self._in_use,
            self._fetch_change,  # type: ignore[arg-type]  # the stubs lack None, which stands for no change
            self._authorities is not None,
        )

    def _fetch_change(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the configuration if it changed since the last call. Runs in a thread of gRPC's."""
        current = self._files.current
        if current is self._in_use:
            return None
        self._in_use = current
        return current

    def _read(self) -> grpc.ServerCertificateConfiguration:
        pair: CertificatePair = read_pair(self._certificate, self._key)
        roots = read_authorities(self._authorities) if self._authorities is not None else None
        return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)], roots)


def _is_local(address: str) -> bool:
    """Whether only this machine can reach an address."""
    return is_loopback_host(ListenAddress.parse(address).host)
