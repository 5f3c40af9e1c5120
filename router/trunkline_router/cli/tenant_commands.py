"""Declares, shows, changes, suspends and deletes tenants."""

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
from trunkline_router.cli.operator import CommandFailed, Operator
from trunkline_router.cli.settings_options import SettingsChanges, differing

app = group("Declares tenants, and what their backends and clients may do.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The tenant.", show_default=False)]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@command(
    app,
    "create",
    "trunkline-router tenant create acme --agent helper",
    "trunkline-router tenant create acme --limit connections=500 --limit bytes_per_s=4MiB --max-age 30d",
    "trunkline-router tenant create play --open-to loopback",
)
def create(operator: Operator, name: Name, changes: SettingsChanges) -> None:
    """Declare a tenant. Nobody may connect to it or call for it without a proof, unless --open-to says so."""
    settings = TenantSettings()
    changes.apply(settings)
    request = CreateTenantRequest(tenant=name, settings=settings)
    _show(operator, operator.ask(operator.tenants.CreateTenant, request).tenant)


@command(app, "list")
def list_tenants(operator: Operator) -> None:
    """List all tenants."""
    found: list[Tenant] = []
    more = True
    while more:
        request = ListTenantsRequest(after=found[-1].tenant if found else "")
        page = operator.ask(operator.tenants.ListTenants, request)
        found += page.tenants
        more = page.more
    operator.answer(found, lambda: tenants_table(found) if found else "There are no tenants.")


@command(app, "show")
def show(operator: Operator, name: Name) -> None:
    """Show what is set for a tenant."""
    _show(operator, operator.tenant(name))


@command(
    app,
    "set",
    "trunkline-router tenant set acme --open-to nobody --origin https://example.com",
    "trunkline-router tenant set acme --limit connections=0 --max-age forever",
    "trunkline-router tenant set acme --origin ''",
)
def set_settings(operator: Operator, name: Name, changes: SettingsChanges) -> None:
    """Change what is set for a tenant; what is not named stays.

    A list is set as a whole; one empty text empties it.
    """
    if changes == SettingsChanges():
        raise typer.BadParameter("name at least one option; --help lists them", param_hint="options")
    present = operator.tenant(name)
    wanted = TenantSettings()
    wanted.CopyFrom(present.settings)
    changes.apply(wanted)
    _show(operator, update(operator, present, wanted))


@command(app, "suspend")
def suspend(operator: Operator, name: Name) -> None:
    """Disconnect a tenant's clients and workers, and refuse its calls. What it has is kept."""
    request = SuspendTenantRequest(tenant=name)
    tenant = operator.ask(operator.tenants.SuspendTenant, request).tenant
    operator.answer(tenant, f"{name} is suspended; what it has is kept.")


@command(app, "resume")
def resume(operator: Operator, name: Name) -> None:
    """End a suspension."""
    tenant = operator.ask(operator.tenants.ResumeTenant, ResumeTenantRequest(tenant=name)).tenant
    operator.answer(tenant, f"{name} is active.")


@command(app, "delete", "trunkline-router tenant delete acme", "trunkline-router tenant delete acme --yes")
def delete(operator: Operator, name: Name, yes: Yes = False) -> None:
    """Disconnect a tenant and erase it with all that it has. Asks for its name first."""
    # Whoever mistypes is told before being asked.
    operator.tenant(name)
    if not yes and typer.prompt(f"{name} and all its messages will be erased. Its name", err=True) != name:
        raise CommandFailed(f"That is not its name; {name} stays")
    with operator.busy(f"Erasing {name} …"):
        request = DeleteTenantRequest(tenant=name)
        deleted = operator.ask(operator.tenants.DeleteTenant, request, timeout_s=None)
    operator.answer(deleted, f"{name} is deleted; {deleted.messages} messages were erased.")


def update(operator: Operator, present: Tenant, wanted: TenantSettings) -> Tenant:
    """Have a tenant's settings be so; only fields that differ are sent."""
    fields = differing(present.settings, wanted)
    if not fields:
        return present
    for key in wanted.client_auth.keys:
        # Nobody is shown the secret of these: without one, the router keeps it.
        known = next((each for each in present.settings.client_auth.keys if each.kid == key.kid), None)
        if key.algorithm == "HS256" and key == known:
            key.jwk = ""
    request = UpdateTenantRequest(tenant=present.tenant, settings=wanted)
    request.update_mask.paths.extend(fields)
    return operator.ask(operator.tenants.UpdateTenant, request).tenant


def _show(operator: Operator, tenant: Tenant) -> None:
    operator.answer(tenant, lambda: tenant_table(tenant))
