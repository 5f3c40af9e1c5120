"""Commands that add, generate and remove the keys that verify clients' tokens."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer
from trunkline.v1.tenant_pb2 import Tenant, TenantSettings, VerificationKey
from trunkline_runtime.private_files import open_private

from trunkline_router.cli.commands import command, group
from trunkline_router.cli.operator_client import CommandFailed, OperatorClient
from trunkline_router.cli.tenant_commands import Name, update

app = group("Manage signing keys, which verify the tokens of a tenant's clients.")

Algorithm = Literal["HS256", "RS256", "ES256", "EdDSA"]
Kid = Annotated[str, typer.Option(help="Name of the key, as in the header of tokens.", show_default=False)]


@dataclass(frozen=True)
class KeySource:
    """Options that locate a key; exactly one is required."""

    pem_file: Annotated[Path | None, typer.Option(help="File with a public key or certificate (PEM).")] = None
    jwk_file: Annotated[Path | None, typer.Option(help="File with a JWK.")] = None
    secret_env: Annotated[str | None, typer.Option(help="Environment variable with a secret for HS256.")] = (
        None
    )
    secret_stdin: Annotated[
        bool, typer.Option("--secret-stdin", help="Read a secret for HS256 from standard input.")
    ] = False

    def jwk(self, algorithm: str) -> tuple[str, str]:
        """Read the key as a JWK, and its algorithm if `algorithm` is empty. Raises CommandFailed."""
        # Imported here, as below: cryptography takes longer to import than most commands to run.
        from trunkline_runtime.jwk import check_jwk, jwk_of

        content, algorithms = self._read()
        problem = ""
        for each in [algorithm] if algorithm else algorithms:
            try:
                if self.jwk_file is None:
                    return jwk_of(each, content), each
                jwk = content.decode()
                check_jwk(each, jwk)
                return jwk, each
            except ValueError as error:
                problem = str(error)
        if algorithm or len(algorithms) == 1:
            raise CommandFailed(f"The key cannot be used: {problem}")
        raise CommandFailed("The key fits no algorithm of tokens; name one with --algorithm to see why")

    def _read(self) -> tuple[bytes, tuple[str, ...]]:
        """Read the key's content, and the algorithms that it may be for."""
        given = [self.pem_file, self.jwk_file, self.secret_env, self.secret_stdin or None]
        if sum(each is not None for each in given) != 1:
            raise typer.BadParameter(
                "name one of --pem-file, --jwk-file, --secret-env and --secret-stdin", param_hint="options"
            )
        if self.secret_stdin:
            return secret_from_stdin(), ("HS256",)
        if self.secret_env is not None:
            if self.secret_env not in os.environ:
                raise CommandFailed("--secret-env: no such environment variable")
            return os.environb[self.secret_env.encode()], ("HS256",)
        if self.pem_file is not None:
            return read_file(self.pem_file), ("RS256", "ES256", "EdDSA")
        assert self.jwk_file is not None
        return read_file(self.jwk_file), get_args(Algorithm)


@command(
    app,
    "add",
    "trunkline-router tenant signing-key add acme --kid 2026-01 --pem-file acme.pem",
    "trunkline-router tenant signing-key add acme --kid 2026-01 --algorithm HS256 --secret-env ACME_SECRET",
)
def add(
    client: OperatorClient,
    name: Name,
    kid: Kid,
    source: KeySource,
    algorithm: Annotated[
        Algorithm | None,
        typer.Option(help="Algorithm of the key; by default the one that fits.", show_default=False),
    ] = None,
) -> None:
    """Add a signing key. Other keys stay valid: tokens name theirs by kid."""
    jwk, found = source.jwk(algorithm or "")
    tenant = add_key(client, name, VerificationKey(kid=kid, algorithm=found, jwk=jwk))
    client.print_result(tenant, f"{name} accepts tokens signed with {kid} ({found}).")


@command(app, "remove", "trunkline-router tenant signing-key remove acme 2025-12")
def remove(
    client: OperatorClient,
    name: Name,
    kid: Annotated[str, typer.Argument(metavar="KID", help="Name of the key.", show_default=False)],
) -> None:
    """Remove a signing key and disconnect the clients whose tokens it verified."""
    present = client.tenant(name)
    wanted = _copy(present)
    left = [key for key in wanted.client_auth.keys if key.kid != kid]
    if len(left) == len(present.settings.client_auth.keys):
        raise CommandFailed(f"{name} has no signing key {kid}")
    del wanted.client_auth.keys[:]
    wanted.client_auth.keys.extend(left)
    client.print_result(
        update(client, present, wanted), f"{name} no longer accepts tokens signed with {kid}."
    )


@command(
    app,
    "generate",
    "trunkline-router tenant signing-key generate acme",
    "trunkline-router tenant signing-key generate acme --kid 2026-01 --out acme.key",
)
def generate(
    client: OperatorClient,
    name: Name,
    kid: Annotated[
        str, typer.Option(help="Name of the key; by default made from the date.", show_default=False)
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(help="File for the private key; by default TENANT-KID.pem.", show_default=False),
    ] = None,
) -> None:
    """Generate an Ed25519 key pair: write the private key to a file, add the public key to the tenant."""
    kid = kid or f"{time.strftime('%Y-%m-%d')}-{secrets.token_hex(2)}"
    path = out or Path(f"{name}-{kid}.pem".replace(os.sep, "_"))
    from joserfc.jwk import OKPKey

    pair = OKPKey.generate_key("Ed25519")
    _write_private(path, pair.as_pem(private=True))
    try:
        public = json.dumps(pair.as_dict(private=False))
        tenant = add_key(client, name, VerificationKey(kid=kid, algorithm="EdDSA", jwk=public))
    except BaseException:
        # The tenant did not accept the key, so the file is useless.
        path.unlink()
        raise
    client.print_result(
        {"kid": kid, "algorithm": "EdDSA", "privateKeyFile": str(path), "tenant": tenant.tenant},
        f"{name} accepts tokens signed with {kid} (EdDSA). The private key is in {path}.",
    )


def add_key(client: OperatorClient, name: str, key: VerificationKey) -> Tenant:
    """Add a signing key to a tenant. Raises CommandFailed if it has one of this name."""
    present = client.tenant(name)
    if key.kid in {each.kid for each in present.settings.client_auth.keys}:
        raise CommandFailed(f"{name} already has a signing key {key.kid}; use another --kid")
    wanted = _copy(present)
    wanted.client_auth.keys.append(key)
    return update(client, present, wanted)


def read_file(path: Path) -> bytes:
    """Read a file. Raises CommandFailed."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}") from None


def secret_from_stdin() -> bytes:
    """Read a secret from standard input, without its line ending."""
    return sys.stdin.buffer.read().removesuffix(b"\n").removesuffix(b"\r")


def _copy(tenant: Tenant) -> TenantSettings:
    settings = TenantSettings()
    settings.CopyFrom(tenant.settings)
    return settings


def _write_private(path: Path, pem: bytes) -> None:
    """Create a file that only its owner can read. Raises CommandFailed, also if the file exists."""
    try:
        with open(path, "xb", opener=open_private) as file:
            file.write(pem)
    except FileExistsError:
        raise CommandFailed(f"{path} already exists; use --out for another file") from None
    except OSError as error:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise CommandFailed(f"{path}: {error.strerror}") from None
