"""Reads and formats the settings of agents: `concurrency=8`, or `helper:concurrency=8` for one agent."""

from __future__ import annotations

from collections.abc import Iterator

import typer
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from trunkline.v1.tenant_pb2 import AgentSettings, TenantSettings
from trunkline_runtime.enum_names import enum_names

from trunkline_router.cli.units import format_seconds, parse_seconds

_HINT = "--agent-setting"
_MOST = 2**32 - 1

NAMES = tuple(field.name for field in AgentSettings.DESCRIPTOR.fields)


def set_agent_setting(settings: TenantSettings, assignment: str) -> None:
    """Apply `[AGENT:]NAME=VALUE`, or `AGENT:` to forget an agent's settings. Raises BadParameter."""
    agent, separator, rest = assignment.rpartition(":")
    if separator and not rest:
        settings.agents.pop(agent, None)
        return
    name, _, value = rest.partition("=")
    field = AgentSettings.DESCRIPTOR.fields_by_name.get(name)
    if field is None:
        problem = f"{name!r} is not a setting of agents; the settings are {', '.join(NAMES)}"
        raise typer.BadParameter(problem, param_hint=_HINT)
    number = _number(field, value)
    chosen = settings.agents[agent] if separator else settings.agent_defaults
    setattr(chosen, name, number)
    if chosen.ListFields():
        return
    if separator:
        del settings.agents[agent]
    else:
        settings.ClearField("agent_defaults")


def agent_settings(settings: TenantSettings) -> Iterator[str]:
    """Each setting, as `set_agent_setting` reads it, those for all agents first."""
    yield from _assignments("", settings.agent_defaults)
    for agent in sorted(settings.agents):
        yield from _assignments(f"{agent}:", settings.agents[agent])


def _assignments(prefix: str, settings: AgentSettings) -> Iterator[str]:
    for field, value in settings.ListFields():
        yield f"{prefix}{field.name}={_text(field, value)}"


def _number(field: FieldDescriptor, value: str) -> int:
    if field.enum_type is not None:
        words = {_word(field.enum_type, each.number): each.number for each in field.enum_type.values}
        if value not in words:
            problem = f"{field.name} must be one of {', '.join(words)}, not {value!r}"
            raise typer.BadParameter(problem, param_hint=_HINT)
        return words[value]
    if field.name.endswith("_s"):
        number = parse_seconds(value, _HINT)
    elif value.isascii() and value.isdigit() and len(value) < 20:
        number = int(value)
    else:
        raise typer.BadParameter(f"{field.name} must be a number, not {value!r}", param_hint=_HINT)
    if number > _MOST:
        raise typer.BadParameter(f"{field.name} must be at most {_MOST}", param_hint=_HINT)
    return number


def _text(field: FieldDescriptor, value: int) -> str:
    if field.enum_type is not None:
        return _word(field.enum_type, value)
    return format_seconds(value) if field.name.endswith("_s") else str(value)


def _word(enum: EnumDescriptor, value: int) -> str:
    """`expire` for WITHOUT_WORKER_EXPIRE, and `default` for 0."""
    return enum_names(enum)[value] if value else "default"
