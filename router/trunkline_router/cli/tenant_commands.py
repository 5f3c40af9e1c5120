"""Commands that create, show, change, suspend and delete tenants."""

from __future__ import annotations

from typing import Annotated

import typer
from trunkline.v1.tenant_pb2 import Tenant, TenantSettings
from trunkline.v1.tenant_service_pb2 import (
    CreateTenantRequest,
    DeleteTenantRequest,
    ListTenantsRequest,
    ResumeTenantRequest,
    SuspendTenantRequest,
    UpdateTenantRequest,
)

from trunkline_router.cli.commands import command, group
from trunkline_router.cli.formatting import tenant_table, tenants_table
from trunkline_router.cli.operator_client import CommandFailed, OperatorClient
from trunkline_router.cli.settings_options import SettingsChanges, changed_fields

app = group("Manage tenants: their settings, API keys, signing keys, tokens and users.")

Name = Annotated[str, typer.Argument(metavar="TENANT", help="Name of the tenant.", show_default=False)]
Yes = Annotated[bool, typer.Option("--yes", help="Skip the confirmation.")]


@command(
    app,
    "create",
    "trunkline-router tenant create acme --agent helper",
    "trunkline-router tenant create acme --limit connections=500 --limit bytes_per_s=4MiB --max-age 30d",
    "trunkline-router tenant create play --open-to loopback",
)
def create(client: OperatorClient, name: Name, changes: SettingsChanges) -> None:
    """Create a tenant. Without --open-to, every client and every call needs credentials."""
    settings = TenantSettings()
    changes.apply(settings)
    request = CreateTenantRequest(tenant=name, settings=settings)
    _print(client, client.call(client.tenants.CreateTenant, request).tenant)


@command(app, "list", "trunkline-router tenant list", "trunkline-router tenant list --json")
def list_tenants(client: OperatorClient) -> None:
    """List all tenants."""
    found: list[Tenant] = []
    more = True
    while more:
        request = ListTenantsRequest(after=found[-1].tenant if found else "")
        page = client.call(client.tenants.ListTenants, request)
        found += page.tenants
        more = page.more
    client.print_result(found, lambda: tenants_table(found) if found else "There are no tenants.")


@command(app, "show", "trunkline-router tenant show acme")
def show(client: OperatorClient, name: Name) -> None:
    """Show the settings of a tenant."""
    _print(client, client.tenant(name))


@command(
    app,
    "set",
    "trunkline-router tenant set acme --open-to nobody --origin https://example.com",
    "trunkline-router tenant set acme --limit connections=0 --max-age forever",
    "trunkline-router tenant set acme --origin ''",
)
def set_settings(client: OperatorClient, name: Name, changes: SettingsChanges) -> None:
    """Change settings of a tenant. Settings that are not named stay as they are.

    A list is replaced as a whole; one empty string clears it.
    """
    if changes == SettingsChanges():
        raise typer.BadParameter("name at least one option (see --help)", param_hint="options")
    present = client.tenant(name)
    wanted = TenantSettings()
    wanted.CopyFrom(present.settings)
    changes.apply(wanted)
    _print(client, update(client, present, wanted))


@command(app, "suspend", "trunkline-router tenant suspend acme")
def suspend(client: OperatorClient, name: Name) -> None:
    """Disconnect a tenant's clients and workers and refuse its calls. Its data is kept."""
    request = SuspendTenantRequest(tenant=name)
    tenant = client.call(client.tenants.SuspendTenant, request).tenant
    client.print_result(tenant, f"{name} is suspended; its data is kept.")


@command(app, "resume", "trunkline-router tenant resume acme")
def resume(client: OperatorClient, name: Name) -> None:
    """Resume a suspended tenant."""
    tenant = client.call(client.tenants.ResumeTenant, ResumeTenantRequest(tenant=name)).tenant
    client.print_result(tenant, f"{name} is active.")


@command(app, "delete", "trunkline-router tenant delete acme", "trunkline-router tenant delete acme --yes")
def delete(client: OperatorClient, name: Name, yes: Yes = False) -> None:
    """Disconnect a tenant and erase it with all its data. Asks for the tenant's name first."""
    # Report a mistyped name before the question.
    client.tenant(name)
    if not yes and typer.prompt(f"This erases {name} and all its messages. Type its name", err=True) != name:
        raise CommandFailed(f"The name does not match; {name} was not deleted")
    with client.progress(f"Erasing {name} …"):
        request = DeleteTenantRequest(tenant=name)
        deleted = client.call(client.tenants.DeleteTenant, request, timeout_s=None)
    client.print_result(deleted, f"{name} is deleted; {deleted.messages} messages were erased.")


def update(client: OperatorClient, present: Tenant, wanted: TenantSettings) -> Tenant:
    """Update a tenant's settings, sending only the fields that differ. Returns the tenant."""
    fields = changed_fields(present.settings, wanted)
    if not fields:
        return present
    for key in wanted.client_auth.keys:
        # The router never returns HS256 secrets; a key without one keeps the stored secret.
        known = next((each for each in present.settings.client_auth.keys if each.kid == key.kid), None)
        if key.algorithm == "HS256" and key == known:
            key.jwk = ""
    request = UpdateTenantRequest(tenant=present.tenant, settings=wanted)
    request.update_mask.paths.extend(fields)
    return client.call(client.tenants.UpdateTenant, request).tenant


def _print(client: OperatorClient, tenant: Tenant) -> None:
    client.print_result(tenant, lambda: tenant_table(tenant))
