"""The commands `tenant` and `audit`, imported on first use so that a router starts without them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from typer.core import TyperCommand


class LazyGroup(TyperGroup):
    """A command group that imports its commands when they are listed or called."""

    @cached_property
    def _group(self) -> Any:
        from trunkline_router.cli.command_tree import app

        return typer.main.get_group(app)

    def list_commands(self, ctx: Any) -> list[str]:
        """See Group."""
        return list(self._group.list_commands(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """See Group."""
        command: TyperCommand | None = self._group.get_command(ctx, cmd_name)
        return command


def tenant_app() -> typer.Typer:
    """Build the group `trunkline-router tenant`."""
    return typer.Typer(
        cls=LazyGroup,
        help="Manage tenants: their settings, API keys, signing keys, tokens and users.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )


def add_audit_command(app: typer.Typer) -> None:
    """Add `trunkline-router audit`, which parses its own arguments."""

    @app.command(
        "audit",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
        help="List who changed what: administrative calls and refused attempts.",
    )
    def audit(ctx: typer.Context) -> None:
        from trunkline_router.cli.audit_command import app as command

        typer.main.get_command(command).main(ctx.args, prog_name="trunkline-router audit")
