"""Commands for a tenant's users: trial tokens, revocations and erasures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from trunkline.v1.tenant_pb2 import Revocation
from trunkline.v1.tenant_service_pb2 import EraseUserRequest, ListRevocationsRequest, RevokeTokensRequest

from trunkline_router.cli.commands import command, group
from trunkline_router.cli.formatting import revocations_table
from trunkline_router.cli.operator_client import CommandFailed, OperatorClient
from trunkline_router.cli.signing_key_commands import read_file, secret_from_stdin
from trunkline_router.cli.tenant_commands import Name, Yes
from trunkline_router.cli.tokens import TokenPermissions, claims_of, signer_of_pem, signer_of_secret
from trunkline_router.cli.units import parse_seconds

MAX_DAYS = 366

app = group("Manage a tenant's users.")


@command(
    app,
    "token",
    "trunkline-router tenant token acme --user alice --private-key-file acme-2026-01.pem",
    "trunkline-router tenant token acme --user alice --expires 15m --right subscribe --secret-stdin < secret",
)
def token(
    client: OperatorClient,
    name: Name,
    user: Annotated[str, typer.Option(help="User of the token.", show_default=False)],
    permissions: TokenPermissions,
    expires: Annotated[str, typer.Option(help="Lifetime, such as 15m.")] = "1h",
    private_key_file: Annotated[Path | None, typer.Option(help="Private key (PEM) to sign with.")] = None,
    secret_stdin: Annotated[
        bool, typer.Option("--secret-stdin", help="Read the secret to sign with from standard input.")
    ] = False,
    kid: Annotated[str, typer.Option(help="Name of the key; by default the tenant's matching key.")] = "",
) -> None:
    """Create a token for trials, as the tenant's own backend would, and print it."""
    if (private_key_file is not None) == secret_stdin:
        raise typer.BadParameter("name either --private-key-file or --secret-stdin", param_hint="options")
    expires_s = parse_seconds(expires, "--expires")
    if not 0 < expires_s <= MAX_DAYS * 86400:
        raise typer.BadParameter(f"must be more than 0s and at most {MAX_DAYS}d", param_hint="--expires")
    tenant = client.tenant(name)
    if private_key_file is not None:
        signer = signer_of_pem(read_file(private_key_file), tenant, kid)
    else:
        signer = signer_of_secret(secret_from_stdin(), tenant, kid)
    claims = claims_of(tenant, user, expires_s, permissions)
    signed = signer.sign(claims)
    client.print_result({"token": signed, "kid": signer.kid, "claims": claims}, signed)


@command(
    app,
    "revoke",
    "trunkline-router tenant revoke acme --user alice",
    "trunkline-router tenant revoke acme --token-id 9a1c0e52",
)
def revoke(
    client: OperatorClient,
    name: Name,
    user: Annotated[str | None, typer.Option(help="Revoke the user's tokens issued until now.")] = None,
    token_id: Annotated[str | None, typer.Option(help="Revoke the token with this id (jti).")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Revoke all of the tenant's tokens issued until now.")
    ] = False,
) -> None:
    """Revoke tokens and disconnect the clients that use them."""
    if sum((user is not None, token_id is not None, everything)) != 1:
        raise typer.BadParameter("name one of --user, --token-id and --all", param_hint="options")
    request = RevokeTokensRequest(tenant=name)
    if user is not None:
        request.user = user
    elif token_id is not None:
        request.token_id = token_id
    else:
        request.all = True
    revoked = client.call(client.tenants.RevokeTokens, request)
    client.print_result(revoked, f"Tokens revoked; connections closed: {revoked.connections}.")


@command(app, "revocations", "trunkline-router tenant revocations acme")
def revocations(client: OperatorClient, name: Name) -> None:
    """List the revocations of the last year."""
    found: list[Revocation] = []
    page_token = None
    while page_token != "":
        request = ListRevocationsRequest(tenant=name, page_token=page_token or "")
        page = client.call(client.tenants.ListRevocations, request)
        found += page.revocations
        page_token = page.next_page_token
    client.print_result(found, lambda: revocations_table(found) if found else f"{name} has no revocations.")


@command(app, "erase-user", "trunkline-router tenant erase-user acme alice")
def erase_user(
    client: OperatorClient,
    name: Name,
    user: Annotated[str, typer.Argument(metavar="USER", help="Name of the user.", show_default=False)],
    yes: Yes = False,
) -> None:
    """Erase a user's messages and receipts, and the conversations with the person of that name."""
    if not yes and not typer.confirm(f"Erase all messages of {user} in {name}?", err=True):
        raise CommandFailed("Nothing was erased")
    with client.progress(f"Erasing {user} of {name} …"):
        request = EraseUserRequest(tenant=name, user=user)
        erased = client.call(client.tenants.EraseUser, request, timeout_s=None)
    client.print_result(erased, f"{erased.messages} messages and {erased.receipts} receipts were erased.")
