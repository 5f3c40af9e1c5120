"""Gives tenants the keys that verify their clients' tokens, and takes them away."""

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

from trunkline_router.cli.commands import command, group
from trunkline_router.cli.operator import CommandFailed, Operator
from trunkline_router.cli.tenant_commands import Name, update

app = group("Keys that verify the tokens of a tenant's clients.")

Algorithm = Literal["HS256", "RS256", "ES256", "EdDSA"]
Kid = Annotated[str, typer.Option(help="Its name, as the header of a token has it.", show_default=False)]


@dataclass(frozen=True)
class Source:
    """Options that say where a key is; one of them is needed."""

    pem_file: Annotated[Path | None, typer.Option(help="A file with a public key or certificate.")] = None
    jwk_file: Annotated[Path | None, typer.Option(help="A file with a JWK.")] = None
    secret_env: Annotated[str | None, typer.Option(help="A variable that holds a secret for HS256.")] = None
    secret_stdin: Annotated[
        bool, typer.Option("--secret-stdin", help="Read a secret for HS256 from standard input.")
    ] = False

    def jwk(self, algorithm: str) -> tuple[str, str]:
        """The key as a JWK, and its algorithm where it was not named. Raises CommandFailed."""
        # Not sooner, here as below: cryptography takes longer to import than most commands.
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
        raise CommandFailed("The key is for no algorithm that tokens may have; --algorithm says why not")

    def _read(self) -> tuple[bytes, tuple[str, ...]]:
        """What is there, and the algorithms that it may be for."""
        given = [self.pem_file, self.jwk_file, self.secret_env, self.secret_stdin or None]
        if sum(each is not None for each in given) != 1:
            raise typer.BadParameter(
                "name one of --pem-file, --jwk-file, --secret-env and --secret-stdin", param_hint="options"
            )
        if self.secret_stdin:
            return secret_from_stdin(), ("HS256",)
        if self.secret_env is not None:
            if self.secret_env not in os.environ:
                raise CommandFailed("--secret-env: there is no such variable")
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
    operator: Operator,
    name: Name,
    kid: Kid,
    source: Source,
    algorithm: Annotated[
        Algorithm | None,
        typer.Option(help="What it is for; else what it fits.", show_default=False),
    ] = None,
) -> None:
    """Give a tenant a key. The others stay: tokens name theirs by `kid`."""
    jwk, found = source.jwk(algorithm or "")
    tenant = add_key(operator, name, VerificationKey(kid=kid, algorithm=found, jwk=jwk))
    operator.answer(tenant, f"{name} takes tokens that are signed with {kid} by {found}.")


@command(app, "remove", "trunkline-router tenant signing-key remove acme 2025-12")
def remove(
    operator: Operator,
    name: Name,
    kid: Annotated[str, typer.Argument(metavar="KID", help="Its name.", show_default=False)],
) -> None:
    """Take a key away. Whoever is connected by a token that it has verified is disconnected."""
    present = operator.tenant(name)
    wanted = _copy(present)
    left = [key for key in wanted.client_auth.keys if key.kid != kid]
    if len(left) == len(present.settings.client_auth.keys):
        raise CommandFailed(f"{name} has no signing key {kid}")
    del wanted.client_auth.keys[:]
    wanted.client_auth.keys.extend(left)
    operator.answer(update(operator, present, wanted), f"{name} takes no more tokens of {kid}.")


@command(
    app,
    "generate",
    "trunkline-router tenant signing-key generate acme",
    "trunkline-router tenant signing-key generate acme --kid 2026-01 --out acme.key",
)
def generate(
    operator: Operator,
    name: Name,
    kid: Annotated[str, typer.Option(help="Its name; made of the date if empty.", show_default=False)] = "",
    out: Annotated[
        Path | None,
        typer.Option(help="Where the private key goes; NAME-KID.pem if empty.", show_default=False),
    ] = None,
) -> None:
    """Make a pair of Ed25519 keys: the private one to a file of yours, the public one to the tenant."""
    kid = kid or f"{time.strftime('%Y-%m-%d')}-{secrets.token_hex(2)}"
    path = out or Path(f"{name}-{kid}.pem".replace(os.sep, "_"))
    from joserfc.jwk import OKPKey

    pair = OKPKey.generate_key("Ed25519")
    _write_private(path, pair.as_pem(private=True))
    try:
        public = json.dumps(pair.as_dict(private=False))
        tenant = add_key(operator, name, VerificationKey(kid=kid, algorithm="EdDSA", jwk=public))
    except BaseException:
        # A key that nobody takes is of no use.
        path.unlink()
        raise
    operator.answer(
        {"kid": kid, "algorithm": "EdDSA", "privateKeyFile": str(path), "tenant": tenant.tenant},
        f"{name} takes tokens that are signed with {kid} by EdDSA. The private key is in {path}.",
    )


def add_key(operator: Operator, name: str, key: VerificationKey) -> Tenant:
    """Give a tenant one more key. Raises CommandFailed where it has one of this name."""
    present = operator.tenant(name)
    if key.kid in {each.kid for each in present.settings.client_auth.keys}:
        raise CommandFailed(f"{name} has a signing key {key.kid} already; another one needs another name")
    wanted = _copy(present)
    wanted.client_auth.keys.append(key)
    return update(operator, present, wanted)


def read_file(path: Path) -> bytes:
    """What a file holds. Raises CommandFailed."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}") from None


def secret_from_stdin() -> bytes:
    """A secret, without the end of its line."""
    return sys.stdin.buffer.read().removesuffix(b"\n").removesuffix(b"\r")


def _copy(tenant: Tenant) -> TenantSettings:
    settings = TenantSettings()
    settings.CopyFrom(tenant.settings)
    return settings


def _write_private(path: Path, pem: bytes) -> None:
    """Write a file that only its owner may read. Raises CommandFailed, also where there is one."""
    try:
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode=0o600)) as file:
            file.write(pem)
    except FileExistsError:
        raise CommandFailed(f"{path} is there already; --out names another file") from None
    except OSError as error:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise CommandFailed(f"{path}: {error.strerror}") from None
