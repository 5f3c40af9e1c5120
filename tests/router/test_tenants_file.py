"""The file that declares a router's tenants."""

from __future__ import annotations

import json
import os
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor
from joserfc.jwk import OKPKey, RSAKey
from trunkline.v1.tenant_pb2 import (
    AGENT_MEDIA_IMAGES,
    OPENNESS_ANYBODY,
    OPENNESS_LOOPBACK,
    OPENNESS_NOBODY,
    AgentSettings,
    ClientAuth,
    Retention,
    TenantLimits,
    TenantSettings,
)
from trunkline_router import tenants_file
from trunkline_router.tenants_file import TenantsFile, load
from trunkline_runtime.jose import to_base64url
from trunkline_runtime.process import StartError

from tests.support.processes import ROOT, Process

SECRET = "s3cr3t-of-acme-that-has-at-least-32-bytes"
PAIR = OKPKey.generate_key("Ed25519")
PUBLIC = json.dumps(PAIR.as_dict(private=False))
#: The example in the module's docstring.
EXAMPLE = (tenants_file.__doc__ or "").partition("such as")[2]


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "tenants.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def loaded(folder: Path, text: str | bytes) -> dict[str, TenantSettings]:
    return load(written(folder, text))


def mistake(folder: Path, text: str | bytes) -> str:
    """Load an invalid file. Returns the reported line without the path."""
    with pytest.raises(StartError) as error:
        loaded(folder, text)
    reported = str(error.value)
    [line] = reported.splitlines()
    start = f"TRUNKLINE_TENANTS_FILE: {folder / 'tenants.toml'}: "
    assert line.startswith(start)
    assert "s3cr3t" not in line
    return line.removeprefix(start)


def test_the_file_can_set_every_setting(tmp_path: Path) -> None:
    (tmp_path / "acme.pem").write_bytes(PAIR.as_pem(private=False))
    settings = loaded(tmp_path, EXAMPLE)["acme"]
    [key] = settings.client_auth.keys
    assert (key.kid, key.algorithm, json.loads(key.jwk)) == ("2026-01", "EdDSA", json.loads(PUBLIC))
    assert settings == TenantSettings(
        open_to=OPENNESS_LOOPBACK,
        client_auth=ClientAuth(
            keys=[key],
            jwks_url="https://login.example.com/jwks.json",
            audiences=["chat"],
            issuer="https://login.example.com",
            token_digests=[sha256(b"a long secret").hexdigest()],
        ),
        origins=["https://example.com"],
        allow_credentials=True,
        agents={"helper": AgentSettings(concurrency=8, accepts=AGENT_MEDIA_IMAGES)},
        agent_defaults=AgentSettings(max_attempts=5),
        exclude_background_tasks=True,
        limits=TenantLimits(connections=500),
        retention=Retention(max_age_s=30 * 86400),
        default_agent="helper",
        pipelines=["8f1c2d3e"],
        workspaces=["7d1c8f0a"],
        web_page_bots=["1f0a7c52"],
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("limits", TenantLimits.DESCRIPTOR),
        ("retention", Retention.DESCRIPTOR),
        ("agent_defaults", AgentSettings.DESCRIPTOR),
    ],
)
def test_the_file_can_set_every_number_of_the_contract(
    table: str, message: Descriptor, tmp_path: Path
) -> None:
    names = [field.name for field in message.fields if field.enum_type is None]
    lines = "\n".join(f"{name} = {number}" for number, name in enumerate(names, 1))
    settings = loaded(tmp_path, f"[tenants.a.{table}]\n{lines}")["a"]
    assert [getattr(getattr(settings, table), name) for name in names] == list(range(1, len(names) + 1))


@pytest.mark.parametrize(
    ("setting", "openness"),
    [
        ("", OPENNESS_NOBODY),
        ("open_to = 'nobody'", OPENNESS_NOBODY),
        ("open_to = 'loopback'", OPENNESS_LOOPBACK),
        ("open_to = 'anybody'", OPENNESS_ANYBODY),
    ],
)
def test_a_tenant_is_open_to_nobody_by_default(setting: str, openness: int, tmp_path: Path) -> None:
    assert loaded(tmp_path, f"[tenants.a]\n{setting}")["a"].open_to == openness


def test_a_key_may_be_a_table_json_a_file_or_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_ACME", SECRET)
    rsa = RSAKey.generate_key(2048)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "rsa.pem").write_bytes(rsa.as_pem(private=False))
    inline = ", ".join(f"{name} = '{value}'" for name, value in PAIR.as_dict(private=False).items())
    text = f"""
        [tenants.a]
        keys = [
          {{ kid = "table", algorithm = "EdDSA", jwk = {{ {inline} }} }},
          {{ kid = "json", algorithm = "EdDSA", jwk = '{PUBLIC}' }},
          {{ kid = "file", algorithm = "RS256", pem_file = "keys/rsa.pem" }},
          {{ kid = "secret", algorithm = "HS256", secret = "{SECRET}" }},
          {{ kid = "variable", algorithm = "HS256", secret_env = "SECRET_OF_ACME" }},
        ]
    """
    keys = {key.kid: json.loads(key.jwk) for key in loaded(tmp_path, text)["a"].client_auth.keys}
    assert keys["table"] == keys["json"] == PAIR.as_dict(private=False)
    assert keys["file"]["n"] == rsa.as_dict(private=False)["n"]
    assert keys["secret"] == keys["variable"] == {"kty": "oct", "k": to_base64url(SECRET.encode())}


def test_only_the_digest_of_a_token_is_stored(tmp_path: Path) -> None:
    settings = loaded(tmp_path, f"[tenants.a]\ntokens = ['{SECRET}', '{SECRET}']")["a"]
    assert settings.client_auth.token_digests == [sha256(SECRET.encode()).hexdigest()]
    assert SECRET.encode() not in settings.SerializeToString()


def key(rest: str, algorithm: str = "EdDSA") -> str:
    return f"[[tenants.acme.keys]]\nkid = 'k'\nalgorithm = '{algorithm}'\n{rest}"


PRIVATE = PAIR.as_pem(private=True).decode()
MISTAKES: dict[str, tuple[str | bytes, str]] = {
    "no TOML": (f'[tenants.acme]\ntokens = ["{SECRET}]\n', "at line 2"),
    "a key twice": (f'[tenants.acme]\ntokens = ["{SECRET}"]\ntokens = []\n', "at line 3"),
    "no UTF-8": (b"[tenants.a]\nagent = '\xff'", "utf-8"),
    "an unknown key": (f'[tenants.acme]\ntoken = "{SECRET}"', "tenants.acme.token: "),
    "an unknown table": ("[tenant.acme]\nagent = 'a'", "tenant: "),
    "an unknown limit": ("[tenants.acme.limits]\nsockets = 1", "tenants.acme.limits.sockets: "),
    "no table of tenants": ("tenants = 1", "tenants: must be a table"),
    "no tenant": ("[tenants]\nacme = 1", "tenants.acme: must be a table"),
    "no table of limits": ("[tenants.acme]\nlimits = 1", "tenants.acme.limits: must be a table"),
    "no table of keys": ("[tenants.acme]\nkeys = [1]", "tenants.acme.keys[0]: must be a table"),
    "no list": (f'[tenants.acme]\ntokens = "{SECRET}"', "tenants.acme.tokens: "),
    "no string": ("[tenants.acme]\npipelines = [8]", "tenants.acme.pipelines[0]: "),
    "no number": ("[tenants.acme.limits]\nconnections = true", "tenants.acme.limits.connections: "),
    "a number that is too large": (
        "[tenants.a.limits]\nconnections = 4294967296",
        "tenants.a.limits.connections: ",
    ),
    "a number below zero": ("[tenants.a.retention]\nmax_age_s = -1", "tenants.a.retention.max_age_s: "),
    "no openness": ("[tenants.acme]\nopen_to = 'all'", "tenants.acme.open_to: "),
    "an empty token": ("[tenants.acme]\ntokens = ['']", "tenants.acme.tokens[0]: "),
    "a token that no header can hold": (
        f"[tenants.acme]\ntokens = ['{SECRET}ü']",
        "tenants.acme.tokens[0]: ",
    ),
    "a token that ends in a blank": (f"[tenants.acme]\ntokens = ['{SECRET} ']", "tenants.acme.tokens[0]: "),
    "too many tokens": (
        f"[tenants.acme]\ntokens = [{', '.join(repr(SECRET + str(each)) for each in range(65))}]",
        "tenants.acme.tokens: has 65",
    ),
    "a name of two lines": ('[tenants."a\\nb"]\nagents = 1', "tenants.a b.agents: "),
    "a name that is no tenant's": ("[tenants.'a:b']", "tenants.a:b: may hold no"),
    "no name": ("[tenants.'']", "must be set"),
    "an agent that is none": ("[tenants.acme]\nagent = 'a b'", "tenants.acme.agent: "),
    "a pipeline that is none": ("[tenants.acme]\npipelines = ['a', 'a/b']", "tenants.acme.pipelines"),
    "an origin that is none": ("[tenants.acme]\norigins = ['example.com']", "tenants.acme.origins[0]: "),
    "an audience that is none": ("[tenants.acme]\naudiences = ['a b']", "tenants.acme.audiences"),
    "an issuer that is too long": (f"[tenants.acme]\nissuer = '{'x' * 300}'", "tenants.acme.issuer: "),
    "no URL of a set": ("[tenants.acme]\njwks_url = 'http://example.com'", "tenants.acme.jwks_url: "),
    "a token of two": (
        f"[tenants.a]\ntokens=['{SECRET}']\n[tenants.b]\ntokens=['{SECRET}']",
        "tenants: a token is shared by two tenants, a and b",
    ),
    "a pipeline of two": (
        "[tenants.a]\npipelines=['p1']\n[tenants.b]\npipelines=['p2', 'p1']",
        "tenants: pipeline p1 is reserved by two tenants, a and b",
    ),
    "a key from nowhere": (key(""), "tenants.acme.keys[0]: one of jwk, pem_file, secret, secret_env"),
    "a key from two places": (
        key(f"secret = '{SECRET}'\nsecret_env = 'X'", "HS256"),
        "tenants.acme.keys[0]: one of",
    ),
    "a key without a name": (
        "[[tenants.acme.keys]]\nalgorithm = 'HS256'\nsecret_env = 'X'",
        "tenants.acme.keys[0].kid",
    ),
    "two keys of a name": (
        key(f"secret = '{SECRET}'\n", "HS256") * 2,
        "tenants.acme.keys[1].kid: two keys are called k",
    ),
    "an algorithm that is none": (key("jwk = '{}'", "none"), "tenants.acme.keys[0].algorithm: "),
    "a JWK that is a number": (key("jwk = 1"), "tenants.acme.keys[0].jwk: must be a table"),
    "a JWK with a date": (key("jwk = { exp = 2026-01-01 }"), "tenants.acme.keys[0].jwk: the JWK holds"),
    "a JWK of another kind": (key("jwk = { kty = 'RSA' }"), "tenants.acme.keys[0].jwk: "),
    "a JWK that is no JSON": (key(f"jwk = '{SECRET}'"), "tenants.acme.keys[0].jwk: "),
    "a private JWK": (
        key(f"jwk = '{json.dumps(PAIR.as_dict(private=True))}'"),
        "tenants.acme.keys[0].jwk: the JWK is a private key",
    ),
    "a short secret": (key("secret = 's3cr3t'", "HS256"), "tenants.acme.keys[0].secret: "),
    "a secret for a public algorithm": (key(f"secret = '{SECRET}'"), "tenants.acme.keys[0].secret: "),
    "a secret in place of its variable": (
        key(f"secret_env = '{SECRET}'", "HS256"),
        "tenants.acme.keys[0].secret_env: the environment has no such variable",
    ),
    "a key file that is not there": (
        key(f"pem_file = '{SECRET}'"),
        "tenants.acme.keys[0].pem_file: No such file",
    ),
    "a key file for a secret": (key("pem_file = 'x'", "HS256"), "tenants.acme.keys[0]: pem_file is for"),
    "a key in place of its file": (key(f"pem_file = '''{PRIVATE}\\0'''"), "tenants.acme.keys[0].pem_file: "),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_reported_in_one_line_with_its_place_and_no_secret(name: str, tmp_path: Path) -> None:
    text, place = MISTAKES[name]
    reported = mistake(tmp_path, text)
    assert place in reported
    assert "PRIVATE" not in reported


def test_a_private_key_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text(PRIVATE)
    reported = mistake(tmp_path, key("pem_file = 'key.pem'"))
    assert reported.startswith(
        "tenants.acme.keys[0].pem_file: the PEM holds a private key; give the public one"
    )


def test_a_missing_file_is_reported_in_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(StartError, match=r"TRUNKLINE_TENANTS_FILE: .*(No such file|Is a directory)"):
            load(path)


def handled(file: TenantsFile) -> list[str]:
    """Load the file and mark its content as handled. Returns the names of its tenants."""
    try:
        return list(file.load())
    finally:
        file.mark_handled()


def test_a_changed_file_stays_changed_until_it_is_handled(tmp_path: Path) -> None:
    path = written(tmp_path, "[tenants.a]")
    file = TenantsFile(path)
    assert file.changed()
    file.load()
    assert file.changed()
    handled(file)
    assert not file.changed()
    written(tmp_path, "[tenants.ab]")
    assert file.changed()
    assert handled(file) == ["ab"]
    assert not file.changed()


def test_a_replaced_file_is_a_change_even_if_it_looks_the_same(tmp_path: Path) -> None:
    file = TenantsFile(written(tmp_path, "[tenants.a]"))
    handled(file)
    stamp = os.stat(tmp_path / "tenants.toml")
    other = tmp_path / "other.toml"
    other.write_text("[tenants.b]")
    os.utime(other, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    other.replace(tmp_path / "tenants.toml")
    assert file.changed()


def test_a_mistake_is_reported_once_and_a_restored_file_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path, "[tenants.a]")
    file = TenantsFile(path)
    handled(file)
    path.unlink()
    assert file.changed()
    with pytest.raises(StartError, match="No such file"):
        handled(file)
    assert not file.changed()
    written(tmp_path, "[tenants.a")
    assert file.changed()
    with pytest.raises(StartError, match="Expected"):
        handled(file)
    assert not file.changed()


def test_a_changed_key_file_is_a_change(tmp_path: Path) -> None:
    pem = tmp_path / "key.pem"
    file = TenantsFile(written(tmp_path, key("pem_file = 'key.pem'")))
    with pytest.raises(StartError):
        handled(file)
    assert not file.changed()
    pem.write_bytes(PAIR.as_pem(private=False))
    assert file.changed()
    handled(file)
    assert not file.changed()
    pem.write_bytes(OKPKey.generate_key("Ed25519").as_pem(private=False) + b"\n")
    assert file.changed()


def test_a_router_does_not_start_with_an_invalid_file(tmp_path: Path) -> None:
    path = written(tmp_path, f"[tenants.acme]\ntokens = '{SECRET}'")
    env = {
        "TRUNKLINE_TENANTS_FILE": str(path),
        "TRUNKLINE_ROUTER_LISTEN": "127.0.0.1:0",
        "TRUNKLINE_DATA_DIR": str(tmp_path / "data"),
    }
    with Process([sys.executable, "-m", "trunkline_router", "serve"], env, "router", ROOT) as process:
        assert process.wait() == 1
        [line] = process.stderr.splitlines()
    assert line.startswith(f"router: TRUNKLINE_TENANTS_FILE: {path}: tenants.acme.tokens: ")
    assert SECRET not in line
