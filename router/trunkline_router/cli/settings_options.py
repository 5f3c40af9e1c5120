"""What the options of `create` and `set` change of a tenant's settings."""

from __future__ import annotations

import sys
from collections.abc import MutableSequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Literal

import typer
from trunkline.v1.tenant_pb2 import Openness, TenantLimits, TenantSettings

from trunkline_router.cli.units import FOREVER, bytes_of, seconds

LIMITS = tuple(field.name for field in TenantLimits.DESCRIPTOR.fields)

_CLIENTS, _HISTORY = "Clients", "Limits and history"


@dataclass(frozen=True)
class SettingsChanges:
    """The options that `create` and `set` have; None is what was not named."""

    open_to: Annotated[
        Literal["nobody", "loopback", "anybody"] | None,
        typer.Option(help="Who may do without a token or key.", rich_help_panel=_CLIENTS),
    ] = None
    agent: Annotated[
        str | None,
        typer.Option(help="The agent of clients whose protocol knows none.", rich_help_panel=_CLIENTS),
    ] = None
    pipeline: Annotated[
        list[str] | None,
        typer.Option(help="A LangBot pipeline that is an agent of it.", rich_help_panel=_CLIENTS),
    ] = None
    origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Where web pages may connect from, such as https://example.com.", rich_help_panel=_CLIENTS
        ),
    ] = None
    audience: Annotated[
        list[str] | None,
        typer.Option(help="Tokens must be for one of these.", rich_help_panel=_CLIENTS),
    ] = None
    issuer: Annotated[
        str | None, typer.Option(help="Who must have issued tokens.", rich_help_panel=_CLIENTS)
    ] = None
    jwks_url: Annotated[
        str | None, typer.Option(help="Where keys that verify tokens are.", rich_help_panel=_CLIENTS)
    ] = None
    tokens_stdin: Annotated[
        bool,
        typer.Option(
            "--tokens-stdin",
            help="Read secrets that clients may show in place of tokens, one a line.",
            rich_help_panel=_CLIENTS,
        ),
    ] = False
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help=f"One of {', '.join(LIMITS)}; 0 for the default.",
            rich_help_panel=_HISTORY,
        ),
    ] = None
    max_age: Annotated[
        str | None,
        typer.Option(help=f"How long messages are kept, such as 30d; {FOREVER}.", rich_help_panel=_HISTORY),
    ] = None
    max_messages: Annotated[
        int | None,
        typer.Option(min=0, help="How many entries a topic keeps; 0 for all.", rich_help_panel=_HISTORY),
    ] = None
    max_bytes: Annotated[
        str | None,
        typer.Option(help="How much of a topic is kept, such as 64MiB; 0 for all.", rich_help_panel=_HISTORY),
    ] = None

    def apply(self, settings: TenantSettings) -> None:
        """Change what was named; of a list one empty text stands for none. Raises BadParameter."""
        auth, kept = settings.client_auth, settings.retention
        if self.open_to is not None:
            settings.open_to = Openness.Value(f"OPENNESS_{self.open_to.upper()}")
        if self.agent is not None:
            settings.default_agent = self.agent
        if self.issuer is not None:
            auth.issuer = self.issuer
        if self.jwks_url is not None:
            auth.jwks_url = self.jwks_url
        _fill(settings.pipelines, self.pipeline)
        _fill(settings.origins, self.origin)
        _fill(auth.audiences, self.audience)
        if self.tokens_stdin:
            tokens = dict.fromkeys(line.strip() for line in sys.stdin if line.strip())
            auth.token_digests[:] = [sha256(token.encode()).hexdigest() for token in tokens]
        for each in self.limit or ():
            _set_limit(settings.limits, each)
        if self.max_age is not None:
            kept.max_age_s = 0 if self.max_age == FOREVER else seconds(self.max_age, "--max-age")
        if self.max_messages is not None:
            kept.max_messages = self.max_messages
        if self.max_bytes is not None:
            kept.max_bytes = bytes_of(self.max_bytes, "--max-bytes")


def differing(one: TenantSettings, other: TenantSettings) -> list[str]:
    """The fields in which settings differ."""
    names = [field.name for field in one.DESCRIPTOR.fields]
    return [name for name in names if getattr(one, name) != getattr(other, name)]


def _fill(field: MutableSequence[str], values: list[str] | None) -> None:
    if values:
        field[:] = [] if values == [""] else values


def _set_limit(limits: TenantLimits, said: str) -> None:
    name, _, value = said.partition("=")
    if name not in LIMITS:
        problem = f"{name!r} is no limit; there are {', '.join(LIMITS)}"
        raise typer.BadParameter(problem, param_hint="--limit")
    try:
        if "bytes" in name:
            number = bytes_of(value, "--limit")
        elif value.isascii() and value.isdigit():
            number = int(value)
        else:
            raise typer.BadParameter(f"{name} is a number, and not {value!r}", param_hint="--limit")
        setattr(limits, name, number)
    except ValueError:
        raise typer.BadParameter(f"{name} cannot be so large", param_hint="--limit") from None
