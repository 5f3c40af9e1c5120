"""Create a certificate authority and certificates for trying out TLS: `make certs` runs this.

    ./certs/ca.pem            certificate authority that signs the others
    ./certs/router.pem        router, for localhost, 127.0.0.1 and ::1, or the names in `make certs NAMES=a,b`
    ./certs/edge.pem          edge, for its clients; same names
    ./certs/edge-client.pem   client certificate of the edge, for the router's link port

Each private key is stored beside its certificate, readable by the owner only. Existing files are kept unless
FORCE=1. Protect the authority's key: every process that trusts ca.pem trusts any certificate it signs.
"""

from __future__ import annotations

import os
import shlex
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("localhost", "127.0.0.1", "::1")
VALID_DAYS = 90

_SERVER, _CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


class KeyPair(NamedTuple):
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_authority(name: str = "Trunkline development CA") -> KeyPair:
    """Create a self-signed certificate authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(name, key, x509.BasicConstraints(ca=True, path_length=0))
    builder = builder.issuer_name(_subject(name)).add_extension(
        _key_usage(signs_certificates=True), critical=True
    )
    return KeyPair(builder.sign(key, hashes.SHA256()), key)


def make_server(authority: KeyPair, name: str, names: tuple[str, ...] = NAMES) -> KeyPair:
    """Create a server certificate for these host names and addresses."""
    return _sign(
        authority, name, _SERVER, x509.SubjectAlternativeName([_alternative_name(each) for each in names])
    )


def make_client(authority: KeyPair, name: str) -> KeyPair:
    """Create a client certificate for a DNS name or URI."""
    san = x509.UniformResourceIdentifier(name) if "://" in name else x509.DNSName(name)
    return _sign(authority, name, _CLIENT, x509.SubjectAlternativeName([san]))


def _sign(
    authority: KeyPair, name: str, purpose: x509.ObjectIdentifier, names: x509.SubjectAlternativeName
) -> KeyPair:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(name, key, x509.BasicConstraints(ca=False, path_length=None))
        .issuer_name(authority.certificate.subject)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False
        )
    )
    return KeyPair(builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    name: str, key: ec.EllipticCurvePrivateKey, constraints: x509.BasicConstraints
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_subject(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Allow for clock skew.
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=VALID_DAYS))
        .add_extension(constraints, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def write(pair: KeyPair, certificate: Path) -> None:
    """Write a certificate and, beside it, its key with mode 0600. Replaces existing files."""
    key = pair.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _replace(key_of(certificate), key, 0o600)
    _replace(certificate, pair.certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def key_of(certificate: Path) -> Path:
    """Path of the private key that belongs to a certificate file."""
    return certificate.with_suffix(".key")


def _replace(path: Path, content: bytes, mode: int) -> None:
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    new.replace(path)


def main() -> int:
    """Create all certificates and print the variables to set. Returns the exit code."""
    folder = Path(os.environ.get("CERTS") or ROOT / "certs")
    names = tuple(name for name in os.environ.get("NAMES", "").split(",") if name) or NAMES
    files = [folder / f"{name}.pem" for name in ("ca", "router", "edge", "edge-client")]
    existing = [path for each in files for path in (each, key_of(each)) if path.exists()]
    if existing and os.environ.get("FORCE") != "1":
        print(f"{existing[0]} exists. To replace all certificates: make certs FORCE=1", file=sys.stderr)
        return 1
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = make_authority()
    write(authority, files[0])
    write(make_server(authority, "router", names), files[1])
    write(make_server(authority, "edge", names), files[2])
    write(make_client(authority, "edge"), files[3])
    print(instructions(folder, names))
    return 0


def instructions(folder: Path, names: tuple[str, ...]) -> str:
    """Shell commands that make each process use the certificates."""
    at = shlex.quote(str(folder))
    return f"""\
# Valid for {VALID_DAYS} days, for {", ".join(names)}. Router:
export TRUNKLINE_TLS_CERT={at}/router.pem TRUNKLINE_TLS_KEY={at}/router.key
export TRUNKLINE_LINK_LISTEN=127.0.0.1:50052 TRUNKLINE_TLS_CLIENT_CA={at}/ca.pem TRUNKLINE_LINK_NAMES=edge

# Edge (a separate process: set these in its own environment):
export TRUNKLINE_TLS_CERT={at}/edge.pem TRUNKLINE_TLS_KEY={at}/edge.key
export TRUNKLINE_ROUTER=127.0.0.1:50052 TRUNKLINE_ROUTER_CA={at}/ca.pem
export TRUNKLINE_ROUTER_CERT={at}/edge-client.pem TRUNKLINE_ROUTER_KEY={at}/edge-client.key

# Backends, workers and clients:
export TRUNKLINE_CA={at}/ca.pem"""


if __name__ == "__main__":
    sys.exit(main())
