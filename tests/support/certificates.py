"""Certificate authorities and their certificates for tests, created by deploy/certs.py."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import certs

if TYPE_CHECKING:
    from pathlib import Path

ELSEWHERE = "router.example"


class Certificates:
    """Files of one authority and its certificates, in one directory."""

    def __init__(self, folder: Path, name: str = "Ours") -> None:
        folder.mkdir(exist_ok=True)
        self._authority = certs.make_authority(name)
        self.folder = folder
        self.ca = folder / "ca.pem"
        certs.write(self._authority, self.ca)
        self.router = self._server("router")
        self.edge = self._server("edge")
        self.elsewhere = self._server("elsewhere", (ELSEWHERE,))
        self.client = folder / "edge-client.pem"
        self.renew_client()

    def _server(self, name: str, names: tuple[str, ...] = certs.NAMES) -> Path:
        path = self.folder / f"{name}.pem"
        certs.write(certs.make_server(self._authority, name, names), path)
        return path

    def renew(self, path: Path) -> None:
        """Replace a server's certificate and key."""
        certs.write(certs.make_server(self._authority, path.stem), path)

    def renew_client(self) -> None:
        """Replace the edge's client certificate."""
        certs.write(certs.make_client(self._authority, "edge"), self.client)

    def client_named(self, name: str) -> Path:
        """Return a new client certificate for a DNS name or URI."""
        path = self.folder / f"client-{len(list(self.folder.iterdir()))}.pem"
        certs.write(certs.make_client(self._authority, name), path)
        return path

    @property
    def trusting(self) -> ssl.SSLContext:
        """TLS context of a client that trusts only this authority."""
        return ssl.create_default_context(cafile=self.ca)


def tls_env(prefix: str, certificate: Path) -> dict[str, str]:
    """Return the variables for a certificate and its key, such as TRUNKLINE_TLS_CERT and …_KEY."""
    return {
        f"TRUNKLINE_{prefix}_CERT": str(certificate),
        f"TRUNKLINE_{prefix}_KEY": str(certs.key_of(certificate)),
    }


def serial_of(connection: ssl.SSLObject | ssl.SSLSocket) -> str:
    """Return the serial number of the server's certificate."""
    certificate = connection.getpeercert()
    assert certificate
    return str(certificate["serialNumber"])
