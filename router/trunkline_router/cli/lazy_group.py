"""The command group `tenant`, imported on first use so that a router starts without it."""

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
