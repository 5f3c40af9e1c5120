"""The file that tells a router of its tenants, such as

[tenants.acme]
open_to = "loopback"            # who needs no proof: nobody (the default), loopback or anybody
agent = "helper"                # of clients whose protocol knows no agents
pipelines = ["8f1c2d3e"]        # LangBot pipelines that are agents of acme
tokens = ["a long secret"]      # what clients may show that know no tokens; kept as SHA-256 only
origins = ["https://example.com"]
audiences = ["chat"]
issuer = "https://login.example.com"
jwks_url = "https://login.example.com/jwks.json"

[[tenants.acme.keys]]           # that verify tokens
kid = "2026-01"
algorithm = "EdDSA"
pem_file = "acme.pem"           # beside this file; or jwk = {…}; or, for HS256, secret or secret_env

[tenants.acme.limits]           # the fields of TenantLimits
connections = 500

[tenants.acme.retention]        # the fields of Retention
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

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import (
    ClientAuth,
    Openness,
    Retention,
    TenantLimits,
    TenantSettings,
    VerificationKey,
)
from trunkline.v1.tenant_service_pb2 import CreateTenantRequest
from trunkline_runtime.jwk import jwk_of
from trunkline_runtime.process import StartError
from trunkline_runtime.reserved_names import RESERVED_FIELDS

from trunkline_router.core.validation.tenant_validation import check_settings
from trunkline_router.core.validation.validator import check

#: What every client can send in a header: ASCII, without blanks at the ends.
_Token = Annotated[str, StringConstraints(pattern="^[!-~]([ -~]*[!-~])?$")]

#: What a database of 64-bit signed numbers holds, too.
_Number = Annotated[int, Field(ge=0, le=2**32 - 1)]
_Large = Annotated[int, Field(ge=0, le=2**63 - 1)]

#: Names in the file of what the contract calls otherwise.
_NAMES = {"settings": "", "client_auth": "", "default_agent": "agent", "token_digests": "tokens"}

_SOURCES = ("jwk", "pem_file", "secret", "secret_env")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


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
            raise ValueError("must be a table, or a text of JSON")
        return jwk

    @model_validator(mode="after")
    def _one_source(self) -> _Key:
        if sum(getattr(self, source) is not None for source in _SOURCES) != 1:
            raise ValueError(f"one of {', '.join(_SOURCES)} must be there")
        if self.pem_file is not None and self.algorithm == "HS256":
            raise ValueError("pem_file is for public keys; HS256 has a secret")
        return self


class _Limits(_Table):
    connections: _Number = 0
    connections_per_user: _Number = 0
    connects_per_s: _Number = 0
    messages_per_s: _Number = 0
    bytes_per_s: _Large = 0
    connection_messages_per_s: _Number = 0
    connection_bytes_per_s: _Large = 0
    frame_bytes: _Number = 0
    conversations: _Number = 0
    open_messages: _Number = 0
    calls_per_s: _Number = 0


class _Retention(_Table):
    max_age_s: _Large = 0
    max_messages: _Large = 0
    max_bytes: _Large = 0


class _Tenant(_Table):
    open_to: Literal["nobody", "loopback", "anybody"] = "nobody"
    agent: str = ""
    pipelines: list[str] = Field(default_factory=list)
    tokens: list[_Token] = Field(default_factory=list)
    origins: list[str] = Field(default_factory=list)
    audiences: list[str] = Field(default_factory=list)
    issuer: str = ""
    jwks_url: str = ""
    keys: list[_Key] = Field(default_factory=list)
    limits: _Limits = Field(default_factory=_Limits)
    retention: _Retention = Field(default_factory=_Retention)


class _File(_Table):
    tenants: dict[str, _Tenant] = Field(default_factory=dict)

    @field_validator("tenants")
    @classmethod
    def _claimed_once(cls, tenants: dict[str, _Tenant]) -> dict[str, _Tenant]:
        owners: dict[tuple[str, str], str] = {}
        for name, tenant in tenants.items():
            unique = {field.removesuffix("s"): getattr(tenant, field) for field in RESERVED_FIELDS.values()}
            for kind, values in {**unique, "token": tenant.tokens}.items():
                for each in values:
                    owner = owners.setdefault((kind, each), name)
                    if owner != name:
                        shown = "" if kind == "token" else f" {each}"
                        raise ValueError(f"{kind}{shown} is given to two tenants, {owner} and {name}")
        return tenants


class TenantsFile:
    """A file of tenants, and whether it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: dict[Path, tuple[int, ...]] = {}

    def changed(self) -> bool:
        """It, or a key file that it names, is not what it was when it was loaded last."""
        return any(_stamp(path) != stamp for path, stamp in self._seen.items()) or not self._seen

    def load(self) -> dict[str, TenantSettings]:
        """What tenants are to be, by name.

        Raises StartError, whose one line says where the mistake is and shows no secret.
        """
        # Before it is read: what changes meanwhile is seen later.
        self._seen = {self._path: _stamp(self._path)}
        try:
            tenants = _File.model_validate(tomllib.loads(self._path.read_text(encoding="utf-8"))).tenants
            return {name: self._settings(name, tenant) for name, tenant in tenants.items()}
        except ValidationError as error:
            mistake = error.errors(include_input=False, include_url=False)[0]
            problem = f"{_place(mistake['loc'])}: {mistake['msg'].removeprefix('Value error, ')}"
        except OSError as error:
            problem = str(error.strerror)
        except ValueError as error:
            problem = str(error)
        # A quoted key of TOML may hold line breaks.
        raise StartError(" ".join(f"TRUNKLINE_TENANTS_FILE: {self._path}: {problem}".split())) from None

    def _settings(self, name: str, tenant: _Tenant) -> TenantSettings:
        keys = [self._key(key, f"tenants.{name}.keys[{index}]") for index, key in enumerate(tenant.keys)]
        digests = [sha256(token.encode()).hexdigest() for token in dict.fromkeys(tenant.tokens)]
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
            limits=TenantLimits(**tenant.limits.model_dump()),
            retention=Retention(**tenant.retention.model_dump()),
            default_agent=tenant.agent,
            **{field: getattr(tenant, field) for field in RESERVED_FIELDS.values()},
        )
        try:
            check(CreateTenantRequest(tenant=name, settings=settings))
            check_settings(settings)
        except Refused as reason:
            raise ValueError(f"tenants.{name}{_below(reason.values)}: {reason.values['problem']}") from None
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
        """Raises OSError or ValueError. What was to be a name may be a secret, and is not shown."""
        value = getattr(key, source)
        if source == "jwk":
            return value if isinstance(value, str) else _json(value)
        if source == "pem_file":
            path = self._path.parent / value
            self._seen[path] = _stamp(path)
            return jwk_of(key.algorithm, path.read_bytes())
        if source == "secret_env":
            if value not in os.environ:
                raise ValueError("the environment has no such variable")
            value = os.environ[value]
        return jwk_of(key.algorithm, value)


def load(path: Path) -> dict[str, TenantSettings]:
    """What a file says of tenants. Raises StartError like `TenantsFile.load`."""
    return TenantsFile(path).load()


def _json(table: Mapping[str, Any]) -> str:
    try:
        return json.dumps(table)
    except TypeError:
        raise ValueError("the JWK holds what is no JSON, such as a date") from None


def _stamp(path: Path) -> tuple[int, ...]:
    """Differs where a file was written again, or another one is in its place; nothing where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return ()
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev)


def _place(path: tuple[int | str, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def _below(values: Mapping[str, object]) -> str:
    """Where in a tenant's table stands what the contract calls so."""
    steps = [_NAMES.get(step, step) for step in str(values["field"]).split(".")]
    return "".join(f".{step}" for step in steps if step and step != "tenant")
