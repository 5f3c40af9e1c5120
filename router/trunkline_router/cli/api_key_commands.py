"""Makes, lists and revokes a tenant's API keys."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from trunkline.v1.access_pb2 import Scope
from trunkline.v1.tenant_service_pb2 import CreateApiKeyRequest, ListApiKeysRequest, RevokeApiKeyRequest

from trunkline_router.cli.commands import command, group
from trunkline_router.cli.formatting import keys_table, scopes_of
from trunkline_router.cli.operator import Operator
from trunkline_router.cli.tenant_commands import Name

app = group("API keys, by which backends and workers of a tenant prove who they are.")


class Grantable(StrEnum):
    """The scopes that an API key may have."""

    BROADCAST = "broadcast"
    HISTORY = "history"
    PRESENCE = "presence"
    ATTACH = "attach"
    ADMIN = "admin"


@command(
    app,
    "create",
    "trunkline-router tenant key create acme --scope broadcast --scope history --name billing",
    "TRUNKLINE_KEY=$(trunkline-router tenant key create acme --scope attach -q)",
)
def create(
    operator: Operator,
    name: Name,
    scope: Annotated[
        list[Grantable],
        typer.Option(help="What it may do; may be repeated.", show_default=False),
    ],
    title: Annotated[str, typer.Option("--name", help="What its owner calls it.")] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the secret and nothing else.")] = False,
) -> None:
    """Make an API key, and show its secret, this once."""
    scopes = [Scope.Value(f"SCOPE_{each.name}") for each in scope]
    request = CreateApiKeyRequest(tenant=name, name=title, scopes=scopes)
    made = operator.ask(operator.tenants.CreateApiKey, request)
    operator.answer(made, made.secret)
    if not quiet:
        key = made.api_key
        operator.aside.print(f"Key {key.key_id} of {name}, for {scopes_of(key)}. It is not shown again.")


@command(app, "list")
def list_keys(operator: Operator, name: Name) -> None:
    """List a tenant's API keys, without their secrets."""
    request = ListApiKeysRequest(tenant=name)
    found = list(operator.ask(operator.tenants.ListApiKeys, request).api_keys)
    operator.answer(found, lambda: keys_table(found) if found else f"{name} has no API keys.")


@command(app, "revoke", "trunkline-router tenant key revoke acme 8f1c2d3e")
def revoke(
    operator: Operator,
    name: Name,
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Its id, as `key list` shows it.")],
) -> None:
    """Take an API key back: it is refused from now on, and what goes on with it ends."""
    request = RevokeApiKeyRequest(tenant=name, key_id=key_id)
    answer = operator.ask(operator.tenants.RevokeApiKey, request)
    operator.answer(answer, f"Key {key_id} of {name} is revoked.")
