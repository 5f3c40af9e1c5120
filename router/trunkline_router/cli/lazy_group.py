"""The group `tenant`, of which nothing is imported until it is used: a router starts without it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from typer.core import TyperCommand


class _Later(TyperGroup):
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
    """The commands of `trunkline-router tenant`."""
    return typer.Typer(
        cls=_Later,
        help="Declare tenants, and what their backends and clients may do.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
