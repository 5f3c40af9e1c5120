"""Certificates of one authority and of another one, for tests; made by deploy/certs.py."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import certs

if TYPE_CHECKING:
    from pathlib import Path

ELSEWHERE = "router.example"


class Certificates:
    """Files in one folder: an authority's, and what it certified."""

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
        """Replace a server's certificate, and its key, by another."""
        certs.write(certs.make_server(self._authority, path.stem), path)

    def renew_client(self) -> None:
        """Replace the certificate for edges."""
        certs.write(certs.make_client(self._authority, "edge"), self.client)

    @property
    def trusting(self) -> ssl.SSLContext:
        """A client that trusts this authority, and no other."""
        return ssl.create_default_context(cafile=self.ca)


def tls_env(prefix: str, certificate: Path) -> dict[str, str]:
    """The two variables that name a certificate and its key, such as TRUNKLINE_TLS_CERT and …_KEY."""
    return {
        f"TRUNKLINE_{prefix}_CERT": str(certificate),
        f"TRUNKLINE_{prefix}_KEY": str(certs.key_of(certificate)),
    }


def serial_of(connection: ssl.SSLObject | ssl.SSLSocket) -> str:
    """The serial number of the certificate that a server has shown."""
    shown = connection.getpeercert()
    assert shown
    return str(shown["serialNumber"])
