"""What an edge is told of tenants, and the file that tells it."""

from __future__ import annotations

import hmac
import json
import sys
from pathlib import Path

import pytest
import websockets
from hypothesis import given
from hypothesis import strategies as st
from processes import ROOT, Process, edge_process, router_process
from trunkline.v1.catalogue import Refused

from edge import tenants_file
from edge.dialects import tenants as tenants_module
from edge.dialects.tenants import TenantPolicy, Tenants
from shared.process import StartError

SECRET = "s3cr3t-of-acme"
FILE = f"""
[tenants.acme]
agent = "helper"
pipelines = ["p1", "p2"]
tokens = ["{SECRET}", "another one"]

[tenants.open]
pipelines = ["p3"]
"""


def loaded(tmp_path: Path, text: str | bytes) -> Tenants:
    path = tmp_path / "tenants.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return tenants_file.load(path)


def test_a_file_says_what_clients_leave_out_and_what_must_be_proved(tmp_path: Path) -> None:
    tenants = loaded(tmp_path, FILE)
    owners = [tenants.of_pipeline(pipeline) for pipeline in ("p1", "p2", "p3", "p4", "")]
    assert owners == ["acme", "acme", "open", "", ""]
    assert [tenants.agent_of(tenant) for tenant in ("acme", "open", "unknown")] == ["helper", "", ""]
    assert [tenants.needs_token(tenant) for tenant in ("acme", "open", "unknown")] == [True, False, False]
    assert [tenants.of_token(token) for token in (SECRET, "another one", "no", "")] == [
        "acme",
        "acme",
        "",
        "",
    ]
    tenants.admit("acme", SECRET)
    tenants.admit("open", "")
    tenants.admit("unknown", "whatever")


def test_without_a_file_all_tenants_are_open() -> None:
    tenants_file.load(None).admit("acme", "")


@pytest.mark.parametrize("token", ["", "s3cr3t-of-acm", SECRET + "x", SECRET.upper(), "ü", "\udcff", "\0"])
def test_a_wrong_token_is_refused_whatever_it_is(token: str) -> None:
    tenants = Tenants({"acme": TenantPolicy(tokens=frozenset({SECRET}))})
    with pytest.raises(Refused) as refused:
        tenants.admit("acme", token)
    assert refused.value.entry.code == "UNAUTHORIZED"
    assert SECRET not in str(refused.value)
    assert tenants.of_token(token) == ""


def test_no_token_is_not_a_token() -> None:
    tenants = Tenants({"acme": TenantPolicy(tokens=frozenset({""}))})
    assert tenants.of_token("") == ""
    with pytest.raises(Refused):
        tenants.admit("acme", "")


@given(st.text(), st.frozensets(st.text(min_size=1), min_size=1))
def test_a_token_is_right_where_it_is_one_of_them(token: str, tokens: frozenset[str]) -> None:
    tenants = Tenants({"acme": TenantPolicy(tokens=tokens), "other": TenantPolicy()})
    assert (tenants.of_token(token) == "acme") == (token in tokens)


def test_a_token_is_compared_with_all_in_a_time_that_does_not_tell_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []
    compare_digest = hmac.compare_digest

    def compare(given: bytes, known: bytes) -> bool:
        compared.append(known)
        return compare_digest(given, known)

    monkeypatch.setattr(tenants_module.hmac, "compare_digest", compare)
    tenants = Tenants({"acme": TenantPolicy(tokens=frozenset({"a", "b", "c"}))})
    tenants.admit("acme", "b")
    assert sorted(compared) == [b"a", b"b", b"c"]


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        (TenantPolicy(tokens=frozenset({SECRET})), "token is given to two tenants, one and two"),
        (TenantPolicy(pipelines=frozenset({"p1"})), "pipeline p1 is given to two tenants, one and two"),
    ],
)
def test_what_two_tenants_claim_is_refused_without_showing_a_token(
    policy: TenantPolicy, problem: str
) -> None:
    with pytest.raises(ValueError, match=f"^{problem}$"):
        Tenants({"one": policy, "two": policy})


WRONG: dict[str, tuple[str | bytes, str]] = {
    "no TOML": (f'[tenants.acme]\ntokens = ["{SECRET}]\n', "at line 2"),
    "a key twice": (f'[tenants.acme]\ntokens = ["{SECRET}"]\ntokens = []\n', "at line 3"),
    "an unknown key": (f'[tenants.acme]\ntoken = "{SECRET}"', "tenants.acme.token"),
    "an unknown table": ("[tenant.acme]\nagent = 'a'", "tenant: "),
    "no list": (f'[tenants.acme]\ntokens = "{SECRET}"', "tenants.acme.tokens"),
    "no string": ("[tenants.acme]\npipelines = [8]", "tenants.acme.pipelines"),
    "an empty token": ("[tenants.acme]\ntokens = ['']", "tenants.acme.tokens"),
    "a token that no header can hold": (f"[tenants.acme]\ntokens = ['{SECRET}ü']", "tenants.acme.tokens"),
    "a token that ends in a blank": (f"[tenants.acme]\ntokens = ['{SECRET} ']", "tenants.acme.tokens"),
    "a name of two lines": ('[tenants."a\\nb"]\nagents = 1', "tenants.a b.agents"),
    "a token of two": (f"[tenants.a]\ntokens=['{SECRET}']\n[tenants.b]\ntokens=['{SECRET}']", "tenants, "),
    "no UTF-8": (b"[tenants.a]\nagent = '\xff'", "utf-8"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_in_a_file_is_said_in_one_line_with_its_place_and_no_token(
    name: str, tmp_path: Path
) -> None:
    text, place = WRONG[name]
    with pytest.raises(StartError) as error:
        loaded(tmp_path, text)
    said = str(error.value)
    assert said.startswith(f"TRUNKLINE_TENANTS_FILE: {tmp_path / 'tenants.toml'}: ")
    assert place in said
    assert SECRET not in said
    assert len(said.splitlines()) == 1


def test_a_file_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(StartError, match=r"TRUNKLINE_TENANTS_FILE: .*(No such file|Is a directory)"):
            tenants_file.load(path)


def test_an_edge_does_not_start_with_a_file_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(f"[tenants.acme]\ntokens = '{SECRET}'")
    env = {"TRUNKLINE_TENANTS_FILE": str(path), "TRUNKLINE_EDGE_LISTEN": "127.0.0.1:0"}
    with Process([sys.executable, "-m", "edge", "serve"], env, "edge", ROOT) as process:
        assert process.wait() == 1
        [line] = process.stderr.splitlines()
    assert line.startswith(f"edge: TRUNKLINE_TENANTS_FILE: {path}: tenants.acme.tokens: ")
    assert SECRET not in line


async def test_an_edge_that_has_a_file_wants_the_tenants_token(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(FILE)
    query = "agent=a&platform=web&conversation=person:x"
    with (
        router_process(tmp_path / "data", TRUNKLINE_TENANTS="acme,open") as router,
        edge_process(router.address, TRUNKLINE_TENANTS_FILE=str(path)) as edge,
    ):

        async def told(more: str, headers: dict[str, str] | None = None) -> str:
            url = f"ws://{edge.address}/v1/connect?{query}&{more}"
            async with websockets.connect(url, additional_headers=headers, proxy=None) as client:
                frame = json.loads(await client.recv())
                return str(frame.get("reason") or frame["type"])

        assert await told("tenant=acme") == "UNAUTHORIZED"
        assert await told("tenant=acme&token=wrong") == "UNAUTHORIZED"
        assert await told(f"tenant=acme&token={SECRET}") == "connected"
        assert await told("tenant=acme", {"Authorization": "Bearer another one"}) == "connected"
        assert await told("tenant=acme", {"Authorization": "Bearer \xff"}) == "UNAUTHORIZED"
        assert await told("tenant=open") == "connected"
        edge.terminate()
        assert SECRET not in edge.stderr
