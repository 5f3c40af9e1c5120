"""Assembles all commands of `trunkline-router tenant`."""

from __future__ import annotations

from trunkline_router.cli import api_key_commands, signing_key_commands, user_commands
from trunkline_router.cli.tenant_commands import app

__all__ = ["app"]

app.add_typer(user_commands.app)
app.add_typer(api_key_commands.app, name="key")
app.add_typer(signing_key_commands.app, name="signing-key")
