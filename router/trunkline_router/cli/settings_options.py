"""The options of `create` and `set` that change a tenant's settings."""

from __future__ import annotations

import sys
from collections.abc import MutableSequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Literal

import typer
from google.protobuf.descriptor import FieldDescriptor
from trunkline.v1.tenant_limits import TENANT_LIMITS
from trunkline.v1.tenant_pb2 import Openness, Retention, TenantLimits, TenantSettings

from trunkline_router.cli.agent_options import NAMES, set_agent_setting
from trunkline_router.cli.units import FOREVER, parse_bytes, parse_seconds

_CLIENTS, _AGENTS, _HISTORY = "Clients", "Agents", "Limits and history"

#: Digits of the largest number of a field.
_MAX_DIGITS = 19


@dataclass(frozen=True)
class SettingsChanges:
    """Options that change settings; None leaves a setting as it is."""

    open_to: Annotated[
        Literal["nobody", "loopback", "anybody"] | None,
        typer.Option(help="Callers that need no token or key.", rich_help_panel=_CLIENTS),
    ] = None
    agent: Annotated[
        str | None,
        typer.Option(help="Agent of clients whose protocol has no agents.", rich_help_panel=_CLIENTS),
    ] = None
    pipeline: Annotated[
        list[str] | None,
        typer.Option(
            help="LangBot pipeline that is an agent of the tenant. Repeatable.", rich_help_panel=_CLIENTS
        ),
    ] = None
    workspace: Annotated[
        list[str] | None,
        typer.Option(help="LangBot workspace of the tenant. Repeatable.", rich_help_panel=_CLIENTS),
    ] = None
    web_page_bot: Annotated[
        list[str] | None,
        typer.Option(
            help="LangBot bot that web pages embed, for anybody to chat with. Repeatable.",
            rich_help_panel=_CLIENTS,
        ),
    ] = None
    origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin of web pages that may connect, such as https://example.com. Repeatable.",
            rich_help_panel=_CLIENTS,
        ),
    ] = None
    allow_credentials: Annotated[
        bool | None,
        typer.Option(
            help="Let pages of these origins send credentials, such as cookies of a proxy.",
            rich_help_panel=_CLIENTS,
        ),
    ] = None
    audience: Annotated[
        list[str] | None,
        typer.Option(help="Audience that tokens must name (aud). Repeatable.", rich_help_panel=_CLIENTS),
    ] = None
    issuer: Annotated[
        str | None,
        typer.Option(help="Issuer that tokens must name (iss).", rich_help_panel=_CLIENTS),
    ] = None
    jwks_url: Annotated[
        str | None,
        typer.Option(help="URL of the JWK Set that verifies tokens.", rich_help_panel=_CLIENTS),
    ] = None
    tokens_stdin: Annotated[
        bool,
        typer.Option(
            "--tokens-stdin",
            help="Read shared secrets that clients may send instead of tokens, one per line.",
            rich_help_panel=_CLIENTS,
        ),
    ] = False
    agent_setting: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[AGENT:]NAME=VALUE",
            help=f"Setting of all agents or of one, 0 for the default; AGENT: alone forgets the agent's."
            f" Repeatable. Names: {', '.join(NAMES)}.",
            rich_help_panel=_AGENTS,
        ),
    ] = None
    exclude_background_tasks: Annotated[
        bool | None,
        typer.Option(
            help="Answer the requests of OpenAI front ends for titles and tags without an agent.",
            rich_help_panel=_AGENTS,
        ),
    ] = None
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help=f"Limit, 0 for the default. Repeatable. Names: {', '.join(TENANT_LIMITS)}.",
            rich_help_panel=_HISTORY,
        ),
    ] = None
    max_age: Annotated[
        str | None,
        typer.Option(
            help=f"Time that messages are kept, such as 30d or {FOREVER}.", rich_help_panel=_HISTORY
        ),
    ] = None
    max_messages: Annotated[
        int | None,
        typer.Option(min=0, help="Entries kept per topic, 0 for all.", rich_help_panel=_HISTORY),
    ] = None
    max_bytes: Annotated[
        str | None,
        typer.Option(help="Bytes kept per topic, such as 64MiB, 0 for all.", rich_help_panel=_HISTORY),
    ] = None

    encrypt_messages: Annotated[
        bool | None,
        typer.Option(
            "--encrypt-messages/--no-encrypt-messages",
            help="Encrypt the content of new messages where they are stored; needs the router's data key.",
            rich_help_panel=_HISTORY,
        ),
    ] = None

    def apply(self, settings: TenantSettings) -> None:
        """Change the named settings; a list of one empty string becomes empty. Raises BadParameter."""
        self._apply_to_clients(settings)
        for assignment in self.agent_setting or ():
            set_agent_setting(settings, assignment)
        if self.exclude_background_tasks is not None:
            settings.exclude_background_tasks = self.exclude_background_tasks
        for assignment in self.limit or ():
            _set_limit(settings.limits, assignment)
        self._apply_to_retention(settings.retention)
        if self.encrypt_messages is not None:
            settings.encrypt_messages = self.encrypt_messages

    def _apply_to_clients(self, settings: TenantSettings) -> None:
        auth = settings.client_auth
        if self.open_to is not None:
            settings.open_to = Openness.Value(f"OPENNESS_{self.open_to.upper()}")
        if self.agent is not None:
            settings.default_agent = self.agent
        if self.allow_credentials is not None:
            settings.allow_credentials = self.allow_credentials
        if self.issuer is not None:
            auth.issuer = self.issuer
        if self.jwks_url is not None:
            auth.jwks_url = self.jwks_url
        _replace(settings.pipelines, self.pipeline)
        _replace(settings.workspaces, self.workspace)
        _replace(settings.web_page_bots, self.web_page_bot)
        _replace(settings.origins, self.origin)
        _replace(auth.audiences, self.audience)
        if self.tokens_stdin:
            tokens = dict.fromkeys(line.strip() for line in sys.stdin if line.strip())
            auth.token_digests[:] = [sha256(token.encode()).hexdigest() for token in tokens]

    def _apply_to_retention(self, retention: Retention) -> None:
        if self.max_age is not None:
            age_s = 0 if self.max_age == FOREVER else parse_seconds(self.max_age, "--max-age")
            _set_number(retention, "max_age_s", age_s, "--max-age")
        if self.max_messages is not None:
            _set_number(retention, "max_messages", self.max_messages, "--max-messages")
        if self.max_bytes is not None:
            _set_number(retention, "max_bytes", parse_bytes(self.max_bytes, "--max-bytes"), "--max-bytes")


def changed_fields(before: TenantSettings, after: TenantSettings) -> list[str]:
    """The names of the fields that differ."""
    names = [field.name for field in before.DESCRIPTOR.fields]
    return [name for name in names if getattr(before, name) != getattr(after, name)]


def _replace(field: MutableSequence[str], values: list[str] | None) -> None:
    if values:
        field[:] = [] if values == [""] else values


def _set_limit(limits: TenantLimits, assignment: str) -> None:
    name, _, value = assignment.partition("=")
    limit = TENANT_LIMITS.get(name)
    if limit is None:
        problem = f"{name!r} is not a limit; the limits are {', '.join(TENANT_LIMITS)}"
        raise typer.BadParameter(problem, param_hint="--limit")
    if limit.is_size:
        number = parse_bytes(value, "--limit")
    elif value.isascii() and value.isdigit():
        # int() rejects thousands of digits; these are already more than any field holds.
        number = int(value.lstrip("0")[: _MAX_DIGITS + 1] or "0")
    else:
        raise typer.BadParameter(f"{name} must be a number, not {value!r}", param_hint="--limit")
    _set_number(limits, name, number, "--limit")


def _set_number(message: TenantLimits | Retention, name: str, number: int, option: str) -> None:
    """Set a field that the option names. Raises BadParameter if the field cannot hold the number."""
    is_wide = message.DESCRIPTOR.fields_by_name[name].type == FieldDescriptor.TYPE_UINT64
    # Wide numbers must also fit a database's signed 64 bits.
    highest = 2**63 - 1 if is_wide else 2**32 - 1
    if number > highest:
        raise typer.BadParameter(f"{name} must be at most {highest}", param_hint=option)
    setattr(message, name, number)
