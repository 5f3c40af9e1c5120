"""Where a router listens, and what those who come there must show."""

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
from trunkline_runtime.loopback import is_loopback_host
from trunkline_runtime.process import StartError

from trunkline_router.rpc.link_verifier import LinkVerifier
from trunkline_router.settings import RouterSettings

_log = structlog.get_logger()

_NO_PROOF = (
    "is not on loopback, and whoever gets there could pass for an edge. Set TRUNKLINE_LINK_KEY to a key that"
    " edges must show, or TRUNKLINE_LINK_LISTEN and TRUNKLINE_TLS_CLIENT_CA to have a port where they must"
    " show certificates; or, where nobody else gets there, TRUNKLINE_INSECURE_LINKS=true."
)


def check(settings: RouterSettings) -> None:
    """Raises StartError where something is missing, or links would be anybody's without it being said."""
    needs = [
        ("TRUNKLINE_TLS_CERT", settings.tls_cert, "TRUNKLINE_TLS_KEY", settings.tls_key),
        ("TRUNKLINE_TLS_KEY", settings.tls_key, "TRUNKLINE_TLS_CERT", settings.tls_cert),
        ("TRUNKLINE_LINK_LISTEN", settings.link_listen, "TRUNKLINE_TLS_CLIENT_CA", settings.tls_client_ca),
        ("TRUNKLINE_TLS_CLIENT_CA", settings.tls_client_ca, "TRUNKLINE_LINK_LISTEN", settings.link_listen),
        ("TRUNKLINE_LINK_LISTEN", settings.link_listen, "TRUNKLINE_TLS_CERT", settings.tls_cert),
    ]
    for name, value, needed, given in needs:
        if value and not given:
            raise StartError(f"{name} is set and {needed} is not; it needs that.")
    has_proof = settings.link_key.get_secret_value() or settings.link_listen or settings.insecure_links
    if not (has_proof or _is_near(settings.router_listen)):
        raise StartError(f"TRUNKLINE_ROUTER_LISTEN={settings.router_listen} {_NO_PROOF}")


def proof(settings: RouterSettings) -> LinkVerifier:
    """How edges prove that they are edges."""
    return LinkVerifier(
        settings.link_key.get_secret_value(),
        by_certificate=bool(settings.link_listen),
        from_anywhere=settings.insecure_links,
    )


def bind(server: grpc.aio.Server, settings: RouterSettings) -> tuple[str, str]:
    """Listen; returns where, and where with certificates for links: empty for nowhere.

    Raises StartError where an address is not to be had, or a certificate is of no use.
    """
    try:
        own = _Certificates(settings, for_links=False).credentials() if settings.tls_cert else None
        for_links = _Certificates(settings, for_links=True).credentials() if settings.link_listen else None
    except TlsError as error:
        names = "TRUNKLINE_TLS_CERT, TRUNKLINE_TLS_KEY and TRUNKLINE_TLS_CLIENT_CA"
        raise StartError(f"{error}. {names} name the files.") from None
    if own is None and not _is_near(settings.router_listen):
        _log.warning("what passes here can be read on its way, keys too: TRUNKLINE_TLS_CERT sets up TLS")
    listening = _listen(server, settings.router_listen, own, "TRUNKLINE_ROUTER_LISTEN")
    if for_links is None:
        return listening, ""
    return listening, _listen(server, settings.link_listen, for_links, "TRUNKLINE_LINK_LISTEN")


def _listen(
    server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None, variable: str
) -> str:
    try:
        if credentials is None:
            port: int = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        problem = f"cannot listen on {address}: is another router running?"
        raise StartError(f"{problem} {variable} names another address.") from error
    return f"{address.rpartition(':')[0]}:{port}"


class _Certificates:
    """What a port shows, and asks for; gRPC asks at each new connection whether that has changed."""

    def __init__(self, settings: RouterSettings, *, for_links: bool) -> None:
        """Raises TlsError."""
        assert settings.tls_cert is not None
        assert settings.tls_key is not None
        self._certificate, self._key = settings.tls_cert, settings.tls_key
        self._authorities = settings.tls_client_ca if for_links else None
        paths = [self._certificate, self._key]
        if self._authorities is not None:
            paths.append(self._authorities)
        self._files = ReloadingFile(paths, self._read)
        self._told = self._files.current

    def credentials(self) -> grpc.ServerCredentials:
        """For one port."""
        return grpc.dynamic_ssl_server_credentials(
            self._told,
            self._changed,  # type: ignore[arg-type]  # the stubs do not know that None is for no change
            self._authorities is not None,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What they are now, if that was not said before. In a thread of gRPC's."""
        current = self._files.current
        if current is self._told:
            return None
        self._told = current
        return current

    def _read(self) -> grpc.ServerCertificateConfiguration:
        pair: CertificatePair = read_pair(self._certificate, self._key)
        roots = read_authorities(self._authorities) if self._authorities is not None else None
        return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)], roots)


def _is_near(address: str) -> bool:
    """Only this machine gets to an address."""
    host = address.rpartition(":")[0].strip("[]")
    return is_loopback_host(host)
