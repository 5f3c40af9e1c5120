"""What concerns a tenant's users: tokens for trying out, revocations, erasures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from trunkline.v1.tenant_pb2 import Revocation
from trunkline.v1.tenant_service_pb2 import EraseUserRequest, ListRevocationsRequest, RevokeTokensRequest

from trunkline_router.cli.commands import command, group
from trunkline_router.cli.formatting import revocations_table
from trunkline_router.cli.operator import CommandFailed, Operator
from trunkline_router.cli.signing_key_commands import read_file, secret_from_stdin
from trunkline_router.cli.tenant_commands import Name, Yes
from trunkline_router.cli.tokens import TokenPermissions, claims_of, signer_of_pem, signer_of_secret
from trunkline_router.cli.units import seconds

MAX_DAYS = 366

app = group("A tenant's users.")


@command(
    app,
    "token",
    "trunkline-router tenant token acme --user alice --private-key-file acme-2026-01.pem",
    "trunkline-router tenant token acme --user alice --expires 15m --right subscribe --secret-stdin < secret",
)
def token(
    operator: Operator,
    name: Name,
    user: Annotated[str, typer.Option(help="Whose it is to be.", show_default=False)],
    allowed: TokenPermissions,
    expires: Annotated[str, typer.Option(help="How long it is good for, such as 15m.")] = "1h",
    private_key_file: Annotated[Path | None, typer.Option(help="The key (PEM) to sign it with.")] = None,
    secret_stdin: Annotated[
        bool, typer.Option("--secret-stdin", help="Read the secret to sign it with from standard input.")
    ] = False,
    kid: Annotated[str, typer.Option(help="The key's name, if the tenant does not tell.")] = "",
) -> None:
    """Make a token of a user for trying out, as the tenant's own backend would, and print it."""
    if (private_key_file is not None) == secret_stdin:
        raise typer.BadParameter("name --private-key-file or --secret-stdin", param_hint="options")
    expires_s = seconds(expires, "--expires")
    if not 0 < expires_s <= MAX_DAYS * 86400:
        raise typer.BadParameter(f"must be more than 0s and at most {MAX_DAYS}d", param_hint="--expires")
    tenant = operator.tenant(name)
    if private_key_file is not None:
        signer = signer_of_pem(read_file(private_key_file), tenant, kid)
    else:
        signer = signer_of_secret(secret_from_stdin(), tenant, kid)
    claims = claims_of(tenant, user, expires_s, allowed)
    made = signer.sign(claims)
    operator.answer({"token": made, "kid": signer.kid, "claims": claims}, made)


@command(
    app,
    "revoke",
    "trunkline-router tenant revoke acme --user alice",
    "trunkline-router tenant revoke acme --token-id 9a1c0e52",
)
def revoke(
    operator: Operator,
    name: Name,
    user: Annotated[str | None, typer.Option(help="Those of this user, issued until now.")] = None,
    token_id: Annotated[str | None, typer.Option(help="The one of this id (jti).")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of the tenant, issued until now.")] = False,
) -> None:
    """Take tokens of clients back, and disconnect whoever is connected by one of them."""
    if sum((user is not None, token_id is not None, everything)) != 1:
        raise typer.BadParameter("name one of --user, --token-id and --all", param_hint="options")
    request = RevokeTokensRequest(tenant=name)
    if user is not None:
        request.user = user
    elif token_id is not None:
        request.token_id = token_id
    else:
        request.all = True
    revoked = operator.ask(operator.tenants.RevokeTokens, request)
    operator.answer(revoked, f"Revoked; connections that this ends: {revoked.connections}.")


@command(app, "revocations")
def revocations(operator: Operator, name: Name) -> None:
    """List what was revoked in the last year."""
    found: list[Revocation] = []
    page_token = None
    while page_token != "":
        request = ListRevocationsRequest(tenant=name, page_token=page_token or "")
        page = operator.ask(operator.tenants.ListRevocations, request)
        found += page.revocations
        page_token = page.next_page_token
    operator.answer(found, lambda: revocations_table(found) if found else f"{name} has revoked nothing.")


@command(app, "erase-user", "trunkline-router tenant erase-user acme alice")
def erase_user(
    operator: Operator,
    name: Name,
    user: Annotated[str, typer.Argument(metavar="USER", help="The user.", show_default=False)],
    yes: Yes = False,
) -> None:
    """Erase what a user has said and read, and the conversations with the person of this name."""
    if not yes and not typer.confirm(f"Erase all that {user} of {name} has said?", err=True):
        raise CommandFailed("Nothing was erased")
    with operator.busy(f"Erasing {user} of {name} …"):
        request = EraseUserRequest(tenant=name, user=user)
        erased = operator.ask(operator.tenants.EraseUser, request, timeout_s=None)
    operator.answer(erased, f"{erased.messages} messages and {erased.receipts} receipts were erased.")
