"""The file that declares a router's tenants, such as

[tenants.acme]
open_to = "loopback"            # callers without credentials: nobody (the default), loopback or anybody
agent = "helper"                # agent of clients whose protocol has no agents
pipelines = ["8f1c2d3e"]        # LangBot pipelines that are agents of acme
workspaces = ["7d1c8f0a"]       # LangBot workspaces of acme
web_page_bots = ["1f0a7c52"]    # LangBot bots that pages embed, for anybody to chat with
tokens = ["a long secret"]      # secrets of clients without tokens; stored as SHA-256 only
origins = ["https://example.com"]
allow_credentials = true        # these pages may send cookies and the like
exclude_background_tasks = true # of front ends that speak OpenAI's protocol: titles, tags
audiences = ["chat"]
issuer = "https://login.example.com"
jwks_url = "https://login.example.com/jwks.json"

[[tenants.acme.keys]]           # keys that verify tokens
kid = "2026-01"
algorithm = "EdDSA"
pem_file = "acme.pem"           # beside this file; or jwk = {…}; for HS256, secret or secret_env

[tenants.acme.agent_defaults]   # fields of AgentSettings, for all agents
max_attempts = 5

[tenants.acme.agents.helper]    # the same of one agent
concurrency = 8
accepts = "images"

[tenants.acme.limits]           # fields of TenantLimits
connections = 500

[tenants.acme.retention]        # fields of Retention
max_age_s = 2592000
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import (
    AgentSettings,
    ClientAuth,
    Openness,
    Retention,
    TenantLimits,
    TenantSettings,
    VerificationKey,
)
from trunkline.v1.tenant_service_pb2 import CreateTenantRequest
from trunkline_runtime.enum_names import enum_names
from trunkline_runtime.jwk import jwk_of
from trunkline_runtime.process import StartError
from trunkline_runtime.reserved_names import RESERVED_FIELDS

from trunkline_router.core.tenants.unique_settings import UniqueSettings
from trunkline_router.core.validation.tenant_validation import check_settings
from trunkline_router.core.validation.validator import check

#: Text that every client can send in a header: ASCII, without spaces at the ends.
_Token = Annotated[str, StringConstraints(pattern="^[!-~]([ -~]*[!-~])?$")]

#: Names in the file that differ from the contract's.
_NAMES = {"settings": "", "client_auth": "", "default_agent": "agent", "token_digests": "tokens"}

#: Types of pydantic's errors for a value in place of a table; their texts name classes.
_NO_TABLE = ("model_type", "dict_type")

_SOURCES = ("jwk", "pem_file", "secret", "secret_env")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


def _numbers_table(message: Descriptor) -> type[_Table]:
    """A table with an optional number, or word of an enum, for each field of a message of the contract."""
    fields: Any = {}
    for field in message.fields:
        if field.enum_type is not None:
            fields[field.name] = (Literal[tuple(_words(field.enum_type))], "default")
            continue
        # Wide numbers must also fit a database's signed 64 bits.
        highest = 2**63 - 1 if field.type == FieldDescriptor.TYPE_UINT64 else 2**32 - 1
        fields[field.name] = (Annotated[int, Field(ge=0, le=highest)], 0)
    table: type[_Table] = create_model(f"_{message.name}", __base__=_Table, **fields)
    return table


def _words(enum: EnumDescriptor) -> dict[str, int]:
    """Return the values of an enum by their short names; the unspecified one is `default`."""
    return {"default": 0, **{name: number for number, name in enum_names(enum).items()}}


_AGENT = _numbers_table(AgentSettings.DESCRIPTOR)
_LIMITS = _numbers_table(TenantLimits.DESCRIPTOR)
_RETENTION = _numbers_table(Retention.DESCRIPTOR)


class _Key(_Table):
    kid: str
    algorithm: Literal["HS256", "RS256", "ES256", "EdDSA"]
    jwk: Any = None
    pem_file: str | None = None
    secret: str | None = None
    secret_env: str | None = None

    @field_validator("jwk")
    @classmethod
    def _table_or_json(cls, jwk: Any) -> Any:
        if not isinstance(jwk, str | dict):
            raise ValueError("must be a table or a string of JSON")
        return jwk

    @model_validator(mode="after")
    def _one_source(self) -> _Key:
        if sum(getattr(self, source) is not None for source in _SOURCES) != 1:
            raise ValueError(f"one of {', '.join(_SOURCES)} must be set")
        if self.pem_file is not None and self.algorithm == "HS256":
            raise ValueError("pem_file is for public keys; HS256 takes a secret")
        return self


class _TenantBase(_Table):
    open_to: Literal["nobody", "loopback", "anybody"] = "nobody"
    agent: str = ""
    tokens: list[_Token] = Field(default_factory=list)
    origins: list[str] = Field(default_factory=list)
    allow_credentials: bool = False
    audiences: list[str] = Field(default_factory=list)
    issuer: str = ""
    jwks_url: str = ""
    encrypt_messages: bool = False
    exclude_background_tasks: bool = False
    keys: list[_Key] = Field(default_factory=list)
    agent_defaults: _AGENT = Field(default_factory=_AGENT)  # type: ignore[valid-type]  # made from the contract
    agents: dict[str, _AGENT] = Field(default_factory=dict)  # type: ignore[valid-type]
    limits: _LIMITS = Field(default_factory=_LIMITS)  # type: ignore[valid-type]
    retention: _RETENTION = Field(default_factory=_RETENTION)  # type: ignore[valid-type]


def _tenant_table() -> type[_TenantBase]:
    """The table of a tenant, with a list for each field of the contract that reserves names for a dialect."""
    lists: Any = {field: (list[str], Field(default_factory=list)) for field in RESERVED_FIELDS.values()}
    table: type[_TenantBase] = create_model("_Tenant", __base__=_TenantBase, **lists)
    return table


_TENANT = _tenant_table()


class _File(_Table):
    tenants: dict[str, _TENANT] = Field(default_factory=dict)  # type: ignore[valid-type]


class TenantsFile:
    """A tenants file that can be loaded again when it changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        #: Stamps of the file, and of the key files that it names, when the content that was handled last was
        #: loaded.
        self._handled: dict[Path, tuple[int, ...]] = {}
        #: The same of the last load.
        self._loaded: dict[Path, tuple[int, ...]] = {}

    def changed(self) -> bool:
        """Whether the file, or a key file that it names, differs from the content that was handled last."""
        return any(_stamp(path) != stamp for path, stamp in self._handled.items()) or not self._handled

    def mark_handled(self) -> None:
        """Note that the content of the last load was applied, or was found to be invalid."""
        self._handled = self._loaded

    def load(self) -> dict[str, TenantSettings]:
        """Load the settings of the declared tenants by name; call `mark_handled` once they are applied.

        Raises StartError, whose one line locates the mistake and contains no secret.
        """
        # Taken before the file is read: a change in between is noticed later.
        self._loaded = {self._path: _stamp(self._path)}
        try:
            file = _File.model_validate(tomllib.loads(self._path.read_text(encoding="utf-8")))
            tenants = {name: self._settings(name, tenant) for name, tenant in file.tenants.items()}
            UniqueSettings().check(tenants)
            return tenants
        except ValidationError as error:
            mistake = error.errors(include_input=False, include_url=False)[0]
            text = mistake["msg"].removeprefix("Value error, ")
            if mistake["type"] in _NO_TABLE:
                text = "must be a table"
            problem = f"{_path_text(mistake['loc'])}: {text}"
        except Refused as reason:
            problem = f"tenants: {reason.values['problem']}"
        except OSError as error:
            problem = str(error.strerror)
        except ValueError as error:
            problem = str(error)
        # A quoted key of TOML may contain line breaks.
        raise StartError(" ".join(f"TRUNKLINE_TENANTS_FILE: {self._path}: {problem}".split())) from None

    def _settings(self, name: str, tenant: _TenantBase) -> TenantSettings:
        keys = [self._key(key, f"tenants.{name}.keys[{index}]") for index, key in enumerate(tenant.keys)]
        digests = [sha256(token.encode()).hexdigest() for token in dict.fromkeys(tenant.tokens)]
        reserved: Any = {field: getattr(tenant, field) for field in RESERVED_FIELDS.values()}
        agents = {agent: _agent_settings(table) for agent, table in tenant.agents.items()}
        settings = TenantSettings(
            open_to=Openness.Value(f"OPENNESS_{tenant.open_to.upper()}"),
            client_auth=ClientAuth(
                keys=keys,
                jwks_url=tenant.jwks_url,
                audiences=tenant.audiences,
                issuer=tenant.issuer,
                token_digests=digests,
            ),
            origins=tenant.origins,
            allow_credentials=tenant.allow_credentials,
            limits=TenantLimits(**_numbers(tenant.limits)),
            retention=Retention(**_numbers(tenant.retention)),
            default_agent=tenant.agent,
            encrypt_messages=tenant.encrypt_messages,
            exclude_background_tasks=tenant.exclude_background_tasks,
            agents={agent: values for agent, values in agents.items() if values.ListFields()},
            **reserved,
        )
        if (defaults := _agent_settings(tenant.agent_defaults)).ListFields():
            settings.agent_defaults.CopyFrom(defaults)
        try:
            check(CreateTenantRequest(tenant=name, settings=settings))
            check_settings(settings)
        except Refused as reason:
            place = f"tenants.{name}{_path_in_file(reason.values)}"
            raise ValueError(f"{place}: {reason.values['problem']}") from None
        return settings

    def _key(self, key: _Key, place: str) -> VerificationKey:
        [source] = [each for each in _SOURCES if getattr(key, each) is not None]
        try:
            jwk = self._jwk(key, source)
        except OSError as error:
            raise ValueError(f"{place}.{source}: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{place}.{source}: {error}") from None
        return VerificationKey(kid=key.kid, algorithm=key.algorithm, jwk=jwk)

    def _jwk(self, key: _Key, source: str) -> str:
        """Convert a key to a JWK. Raises OSError or ValueError without the value, which may be a secret."""
        value = getattr(key, source)
        if source == "jwk":
            return value if isinstance(value, str) else _json(value)
        if source == "pem_file":
            path = self._path.parent / value
            self._loaded[path] = _stamp(path)
            return jwk_of(key.algorithm, path.read_bytes())
        if source == "secret_env":
            if value not in os.environ:
                raise ValueError("the environment has no such variable")
            value = os.environ[value]
        return jwk_of(key.algorithm, value)


def load(path: Path) -> dict[str, TenantSettings]:
    """Load the tenants that a file declares. Raises StartError like `TenantsFile.load`."""
    return TenantsFile(path).load()


def _numbers(table: Any) -> dict[str, int]:
    """The values of a table made by `_numbers_table`."""
    numbers: dict[str, int] = table.model_dump()
    return numbers


def _agent_settings(table: Any) -> AgentSettings:
    settings = AgentSettings()
    for name, value in table.model_dump().items():
        enum = AgentSettings.DESCRIPTOR.fields_by_name[name].enum_type
        setattr(settings, name, value if enum is None else _words(enum)[value])
    return settings


def _json(table: Mapping[str, Any]) -> str:
    try:
        return json.dumps(table)
    except TypeError:
        raise ValueError("the JWK holds a value that JSON cannot hold, such as a date") from None


def _stamp(path: Path) -> tuple[int, ...]:
    """A value that changes when a file is rewritten or replaced; empty if there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return ()
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev)


def _path_text(path: tuple[int | str, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def _path_in_file(values: Mapping[str, object]) -> str:
    """The path within a tenant's table of a field that the contract names."""
    steps = [_NAMES.get(step, step) for step in str(values["field"]).split(".")]
    return "".join(f".{step}" for step in steps if step and step != "tenant")
