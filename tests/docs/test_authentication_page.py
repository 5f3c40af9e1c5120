"""The token, the client and the tables in docs/authentication.md are valid."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from trunkline.v1.access_pb2 import Right, Scope, requires
from trunkline.v1.tenant_pb2 import ClientAuth, VerificationKey
from trunkline_client import Client
from trunkline_edge.auth.key_set import inline_keys
from trunkline_edge.auth.principal import RIGHTS
from trunkline_edge.auth.tokens import verify
from trunkline_edge.http.bindings import services
from trunkline_runtime.jwk import ALGORITHMS

from tests.support.processes import ROOT

PAGE = (ROOT / "docs" / "authentication.md").read_text()


def test_the_token_on_the_page_is_accepted() -> None:
    (program,) = re.findall(r"```python mint\n(.*?)```", PAGE, re.DOTALL)
    defined: dict[str, Any] = {}
    exec(compile(program, "authentication.md", "exec"), defined)
    key = VerificationKey(kid="2026-01", algorithm="ES256", jwk=json.dumps(defined["public"]))
    auth = ClientAuth(keys=[key], audiences=["chat"])
    bearer = verify(defined["token"], "acme", auth, inline_keys(auth), time.time())
    assert bearer.user == "ann"
    assert bearer.addresses.agents == {"echo"}
    assert (bearer.addresses.persons, bearer.addresses.groups) == ({"ann"}, {"tea"})
    assert len(bearer.rights) == len(Right.values()) - 1


def test_the_page_names_all_algorithms_and_rights() -> None:
    for name in ALGORITHMS:
        assert f"| {name} |" in PAGE
    for name in RIGHTS:
        assert f"`{name}`" in PAGE


async def test_the_client_on_the_page_is_a_client() -> None:
    (program,) = re.findall(r"```python client\n(.*?)```", PAGE, re.DOTALL)
    defined: dict[str, Any] = {}
    exec(compile(program, "authentication.md", "exec"), defined)
    assert isinstance(defined["client"], Client)


WORDS = {"operator": "the operator", "link": "edges"}


@pytest.mark.parametrize("scope", [scope for scope in Scope.keys() if scope != "SCOPE_UNSPECIFIED"])  # noqa: SIM118
def test_each_rpc_is_listed_with_the_scope_that_it_requires(scope: str) -> None:
    word = scope.removeprefix("SCOPE_").lower()
    (row,) = re.findall(rf"^\| (?:`{word}`|{WORDS.get(word, word)}) \| (.*) \|$", PAGE, re.MULTILINE)
    methods = [method for service in services() for method in service.methods]
    takes = [m.name for m in methods if m.GetOptions().Extensions[requires] == Scope.Value(scope)]
    assert sorted(row.split(", ")) == sorted(takes)
