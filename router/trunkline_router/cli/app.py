"""All commands of `trunkline-router tenant`."""

from __future__ import annotations

from trunkline_router.cli import api_keys, signing_keys, users
from trunkline_router.cli.tenants import app

__all__ = ["app"]

app.add_typer(users.app)
app.add_typer(api_keys.app, name="key")
app.add_typer(signing_keys.app, name="signing-key")
