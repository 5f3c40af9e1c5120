"""Commands that create, list and revoke API keys."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from trunkline.v1.access_pb2 import Scope
from trunkline.v1.tenant_service_pb2 import CreateApiKeyRequest, ListApiKeysRequest, RevokeApiKeyRequest

from trunkline_router.cli.commands import command, group
from trunkline_router.cli.formatting import keys_table, scopes_of
from trunkline_router.cli.operator_client import OperatorClient
from trunkline_router.cli.tenant_commands import Name

app = group("Manage API keys, by which a tenant's backends and workers authenticate.")


class ApiKeyScope(StrEnum):
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
    client: OperatorClient,
    name: Name,
    scope: Annotated[
        list[ApiKeyScope],
        typer.Option(help="Permission of the key. Repeatable.", show_default=False),
    ],
    title: Annotated[str, typer.Option("--name", help="Name of the key, for people.")] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the secret.")] = False,
) -> None:
    """Create an API key and print its secret, which cannot be printed again."""
    scopes = [Scope.Value(f"SCOPE_{each.name}") for each in scope]
    request = CreateApiKeyRequest(tenant=name, name=title, scopes=scopes)
    created = client.call(client.tenants.CreateApiKey, request)
    client.print_result(created, created.secret)
    if not quiet:
        key = created.api_key
        client.stderr.print(
            f"Created key {key.key_id} of {name} with {scopes_of(key)}. Its secret is not printed again."
        )


@command(app, "list", "trunkline-router tenant key list acme")
def list_keys(client: OperatorClient, name: Name) -> None:
    """List a tenant's API keys, without their secrets."""
    request = ListApiKeysRequest(tenant=name)
    found = list(client.call(client.tenants.ListApiKeys, request).api_keys)
    client.print_result(found, lambda: keys_table(found) if found else f"{name} has no API keys.")


@command(app, "revoke", "trunkline-router tenant key revoke acme 8f1c2d3e")
def revoke(
    client: OperatorClient,
    name: Name,
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Id of the key (see `key list`).")],
) -> None:
    """Revoke an API key: refuse its calls from now on and end its streams."""
    request = RevokeApiKeyRequest(tenant=name, key_id=key_id)
    response = client.call(client.tenants.RevokeApiKey, request)
    client.print_result(response, f"Key {key_id} of {name} is revoked.")
