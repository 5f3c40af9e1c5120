"""Make certificates for a router and its edges, to try TLS out: `make certs` runs this.

    ./certs/ca.pem            the authority, which certifies the others
    ./certs/router.pem        the router's, for localhost, 127.0.0.1 and ::1, or for `make certs NAMES=a,b`
    ./certs/edge.pem          the edge's, for its clients; likewise
    ./certs/edge-client.pem   the edge's, for the router's port for links

Each has its key beside it, in a file that only its owner can read. What is there already is left alone,
unless FORCE=1. The authority's key makes certificates that are trusted wherever ca.pem is: keep it away.
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


class Made(NamedTuple):
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_authority(name: str = "Trunkline's own authority") -> Made:
    """An authority that certifies others, and itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _begun(name, key, x509.BasicConstraints(ca=True, path_length=0))
    builder = builder.issuer_name(_named(name)).add_extension(_usage(certifies=True), critical=True)
    return Made(builder.sign(key, hashes.SHA256()), key)


def make_server(authority: Made, name: str, names: tuple[str, ...] = NAMES) -> Made:
    """A server's, for these host names and addresses."""
    return _made(authority, name, _SERVER, x509.SubjectAlternativeName([_host(each) for each in names]))


def make_client(authority: Made, name: str) -> Made:
    """A client's."""
    return _made(authority, name, _CLIENT, x509.SubjectAlternativeName([x509.DNSName(name)]))


def _made(
    authority: Made, name: str, purpose: x509.ObjectIdentifier, names: x509.SubjectAlternativeName
) -> Made:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _begun(name, key, x509.BasicConstraints(ca=False, path_length=None))
        .issuer_name(authority.certificate.subject)
        .add_extension(_usage(certifies=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False
        )
    )
    return Made(builder.sign(authority.key, hashes.SHA256()), key)


def _begun(
    name: str, key: ec.EllipticCurvePrivateKey, constraints: x509.BasicConstraints
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks differ.
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=VALID_DAYS))
        .add_extension(constraints, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, certifies: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certifies,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certifies,
        crl_sign=certifies,
        encipher_only=False,
        decipher_only=False,
    )


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def write(made: Made, certificate: Path) -> None:
    """Write a certificate, and its key beside it, which only the owner can read. Replaces what is there."""
    key = made.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _replace(key_of(certificate), key, 0o600)
    _replace(certificate, made.certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def key_of(certificate: Path) -> Path:
    """Where the key of a certificate is."""
    return certificate.with_suffix(".key")


def _replace(path: Path, content: bytes, mode: int) -> None:
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    new.replace(path)


def main() -> int:
    """Make them all; returns the exit code."""
    folder = Path(os.environ.get("CERTS") or ROOT / "certs")
    names = tuple(name for name in os.environ.get("NAMES", "").split(",") if name) or NAMES
    files = [folder / f"{name}.pem" for name in ("ca", "router", "edge", "edge-client")]
    there = [path for each in files for path in (each, key_of(each)) if path.exists()]
    if there and os.environ.get("FORCE") != "1":
        print(f"There is {there[0]} already. `make certs FORCE=1` replaces all of them.", file=sys.stderr)
        return 1
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = make_authority()
    write(authority, files[0])
    write(make_server(authority, "router", names), files[1])
    write(make_server(authority, "edge", names), files[2])
    write(make_client(authority, "edge"), files[3])
    print(what_to_set(folder, names))
    return 0


def what_to_set(folder: Path, names: tuple[str, ...]) -> str:
    """What a person sets to use them; lines that a shell takes, but for those that begin with #."""
    at = shlex.quote(str(folder))
    return f"""\
# Good for {VALID_DAYS} days and the names {", ".join(names)}. For the router:
export TRUNKLINE_TLS_CERT={at}/router.pem TRUNKLINE_TLS_KEY={at}/router.key
export TRUNKLINE_LINK_LISTEN=127.0.0.1:50052 TRUNKLINE_TLS_CLIENT_CA={at}/ca.pem

# For an edge, which is a process of its own, with variables of its own:
export TRUNKLINE_TLS_CERT={at}/edge.pem TRUNKLINE_TLS_KEY={at}/edge.key
export TRUNKLINE_ROUTER=127.0.0.1:50052 TRUNKLINE_ROUTER_CA={at}/ca.pem
export TRUNKLINE_ROUTER_CERT={at}/edge-client.pem TRUNKLINE_ROUTER_KEY={at}/edge-client.key

# For backends, workers and clients:
export TRUNKLINE_CA={at}/ca.pem"""


if __name__ == "__main__":
    sys.exit(main())
