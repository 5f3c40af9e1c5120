"""The file that tells an edge of its tenants, such as

[tenants.acme]
agent = "helper"            # of clients whose protocol knows no agents
pipelines = ["8f1c2d3e"]    # LangBot pipelines that are agents of acme
tokens = ["a long secret"]  # where there are any, clients and HTTP requests need one
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from edge.dialects.tenants import TenantPolicy, Tenants
from shared.process import StartError

#: What every client can send in a header: ASCII, without blanks at the ends.
_Token = Annotated[str, StringConstraints(pattern="^[!-~]([ -~]*[!-~])?$")]


class _Tenant(BaseModel):
    model_config = ConfigDict(extra="forbid")

    agent: str = ""
    pipelines: frozenset[str] = frozenset()
    tokens: frozenset[_Token] = frozenset()


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tenants: dict[str, _Tenant] = Field(default_factory=dict)


def load(path: Path | None) -> Tenants:
    """The tenants of a file, or none. Raises StartError where it cannot be read, never showing a token."""
    if path is None:
        return Tenants()
    try:
        read = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        return Tenants({name: TenantPolicy(**dict(tenant)) for name, tenant in read.tenants.items()})
    except ValidationError as error:
        mistake = error.errors(include_input=False)[0]
        problem = f"{'.'.join(str(step) for step in mistake['loc'])}: {mistake['msg']}"
    except (OSError, ValueError) as error:
        problem = str(error)
    # A quoted key of TOML may hold line breaks.
    raise StartError(" ".join(f"TRUNKLINE_TENANTS_FILE: {path}: {problem}".split()))
