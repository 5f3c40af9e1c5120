"""Commands for API keys, signing keys and tokens."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path

import pytest
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import ClientAuth, VerificationKey
from trunkline_edge.auth.key_set import inline_keys
from trunkline_edge.auth.principal import RIGHTS, Principal
from trunkline_edge.auth.tokens import verify
from trunkline_runtime.jwk import jwk_of

from tests.router.cli.command_line import CommandLine

SECRET = "a secret of at least thirty-two bytes"
PRIVATE: dict[str, Key] = {
    "RS256": RSAKey.generate_key(2048),
    "ES256": ECKey.generate_key("P-256"),
    "EdDSA": OKPKey.generate_key("Ed25519"),
}


def signing_keys(tenant: CommandLine, name: str) -> dict[str, str]:
    """The algorithms of a tenant's signing keys, by kid."""
    auth = tenant("show", name, "--json").json["settings"].get("clientAuth", {})
    return {key["kid"]: key["algorithm"] for key in auth.get("keys", ())}


# API keys


def test_an_api_key_is_created_listed_used_and_revoked(tenant: CommandLine, acme: str) -> None:
    words = ("--scope", "history", "--scope", "admin", "--name", "the office")
    made = tenant("key", "create", acme, *words)
    secret = made.out.strip()
    assert secret.startswith("tl_")
    assert "with history, admin. Its secret is not printed again." in made.err
    [key] = tenant("key", "list", acme, "--json").json
    assert (key["name"], key["scopes"]) == ("the office", ["SCOPE_HISTORY", "SCOPE_ADMIN"])
    assert "lastUsedAt" not in key
    as_admin = {"TRUNKLINE_OPERATOR_KEY": secret}
    listed = tenant("key", "list", acme, **as_admin).out
    for fact in (key["keyId"], "the office", "history, admin"):
        assert fact in listed
    assert secret not in listed
    assert tenant.refusal("create", "mine", **as_admin).endswith("(FORBIDDEN)")
    assert tenant.refusal("show", "demo", **as_admin).endswith("(FORBIDDEN)")
    assert tenant("key", "revoke", acme, key["keyId"]).out == f"Key {key['keyId']} of {acme} is revoked.\n"
    assert tenant("key", "list", acme).out == f"{acme} has no API keys.\n"
    assert tenant.refusal("key", "list", acme, **as_admin).endswith("(UNAUTHORIZED)")
    assert tenant.refusal("key", "revoke", acme, key["keyId"]).endswith("(API_KEY_NOT_FOUND)")


def test_quiet_prints_the_secret_alone(tenant: CommandLine, acme: str) -> None:
    quiet = tenant("key", "create", acme, "--scope", "attach", "-q")
    assert quiet.err == ""
    assert quiet.out.startswith("tl_")
    assert len(quiet.out.split()) == 1
    made = tenant("key", "create", acme, "--scope", "attach", "--json", "-q")
    assert made.err == ""
    assert made.json["secret"].startswith("tl_")
    assert made.json["apiKey"]["scopes"] == ["SCOPE_ATTACH"]


def test_an_unknown_scope_is_rejected(tenant: CommandLine, acme: str) -> None:
    assert tenant.run("key", "create", acme, "--scope", "operator").code == 2
    assert tenant.run("key", "create", acme).code == 2


def test_a_name_cannot_control_the_terminal(tenant: CommandLine, acme: str) -> None:
    tenant("key", "create", acme, "--scope", "attach", "--name", "\x1b[2J[red]x\u202e")
    listed = tenant("key", "list", acme).out
    assert "�[2J[red]x�" in listed
    assert "\x1b" not in listed


# Signing keys


@pytest.mark.parametrize("algorithm", PRIVATE)
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("kind", ["pem", "jwk"])
def test_a_public_key_is_added_from_a_file(
    algorithm: str, named: bool, kind: str, tenant: CommandLine, acme: str, tmp_path: Path
) -> None:
    key = PRIVATE[algorithm]
    content = key.as_pem(private=False) if kind == "pem" else json.dumps(key.as_dict(private=False)).encode()
    file = tmp_path / "key"
    file.write_bytes(content)
    words = ["--kid", "k1", f"--{kind}-file", str(file), *(["--algorithm", algorithm] if named else [])]
    tenant("signing-key", "add", acme, *words)
    assert signing_keys(tenant, acme) == {"k1": algorithm}


def test_signing_keys_are_added_and_removed(tenant: CommandLine, acme: str) -> None:
    tenant("signing-key", "add", acme, "--kid", "k1", "--secret-env", "ACME", ACME=SECRET)
    tenant("signing-key", "add", acme, "--kid", "k2", "--secret-stdin", stdin=f"{SECRET}\n")
    assert signing_keys(tenant, acme) == {"k1": "HS256", "k2": "HS256"}
    assert "k1 (HS256), k2 (HS256)" in tenant("show", acme).out
    problem = tenant.refusal("signing-key", "add", acme, "--kid", "k2", "--secret-stdin", stdin=SECRET)
    assert problem == f"{acme} already has a signing key k2; use another --kid"
    tenant("signing-key", "remove", acme, "k1")
    assert signing_keys(tenant, acme) == {"k2": "HS256"}
    assert tenant.refusal("signing-key", "remove", acme, "k1") == f"{acme} has no signing key k1"


def test_an_unusable_key_is_rejected_without_being_printed(
    tenant: CommandLine, acme: str, tmp_path: Path
) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(PRIVATE["EdDSA"].as_pem(private=True))

    def refusal(*words: str, stdin: str = "") -> str:
        return tenant.refusal("signing-key", "add", acme, "--kid", "k", *words, stdin=stdin)

    private = refusal("--pem-file", str(file), "--algorithm", "EdDSA")
    assert private.startswith("The key cannot be used: the PEM holds a private key")
    assert "fits no algorithm" in refusal("--jwk-file", str(file))
    assert "at least 32 are needed" in refusal("--secret-stdin", stdin="hunter2")
    assert "hunter2" not in refusal("--secret-stdin", stdin="hunter2")
    assert refusal("--secret-env", "hunter2") == "--secret-env: no such environment variable"
    assert refusal("--pem-file", str(tmp_path / "none")).endswith("none: No such file or directory")
    assert tenant.run("signing-key", "add", acme, "--kid", "k").code == 2
    both = ("--secret-stdin", "--pem-file", str(file))
    assert tenant.run("signing-key", "add", acme, "--kid", "k", *both).code == 2
    assert signing_keys(tenant, acme) == {}


def test_a_generated_private_key_is_readable_by_its_owner_only(
    tenant: CommandLine, acme: str, tmp_path: Path
) -> None:
    file = tmp_path / "acme.pem"
    made = tenant("signing-key", "generate", acme, "--kid", "k1", "--out", str(file), "--json").json
    assert made == {"kid": "k1", "algorithm": "EdDSA", "privateKeyFile": str(file), "tenant": acme}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "PRIVATE KEY" in file.read_text()
    assert signing_keys(tenant, acme) == {"k1": "EdDSA"}
    before = file.read_bytes()
    again = tenant.refusal("signing-key", "generate", acme, "--out", str(file))
    assert again == f"{file} already exists; use --out for another file"
    assert file.read_bytes() == before
    nowhere = tenant.refusal("signing-key", "generate", acme, "--out", str(tmp_path / "no" / "x.pem"))
    assert nowhere.endswith("No such file or directory")


def test_a_generated_key_that_the_tenant_rejects_leaves_no_file(
    tenant: CommandLine, acme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "UNKNOWN_TENANT" in tenant.refusal("signing-key", "generate", "nobody")
    assert list(tmp_path.iterdir()) == []
    tenant("signing-key", "generate", acme)
    [kid] = signing_keys(tenant, acme)
    assert [path.name for path in tmp_path.iterdir()] == [f"{acme}-{kid}.pem"]


# Tokens


def bearer(tenant: CommandLine, name: str, token: str, secret: str = "") -> Principal:
    """Verify a token as an edge does, and return its principal."""
    settings = tenant("show", name, "--json").json["settings"]["clientAuth"]
    keys = [
        VerificationKey(**(key | ({"jwk": jwk_of("HS256", secret)} if key["algorithm"] == "HS256" else {})))
        for key in settings["keys"]
    ]
    auth = ClientAuth(keys=keys, audiences=settings["audiences"], issuer=settings["issuer"])
    return verify(token, name, auth, inline_keys(auth), time.time())


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_edges_accept_a_created_token(algorithm: str, tenant: CommandLine, acme: str, tmp_path: Path) -> None:
    for each, key in PRIVATE.items():
        (tmp_path / each).write_bytes(key.as_pem(private=False))
        tenant("signing-key", "add", acme, "--kid", f"k-{each}", "--pem-file", str(tmp_path / each))
    private = tmp_path / "private"
    private.write_bytes(PRIVATE[algorithm].as_pem(private=True))
    words = ("token", acme, "--user", "alice", "--private-key-file", str(private))
    principal = bearer(tenant, acme, tenant(*words).out.strip())
    assert (principal.user, principal.rights, principal.addresses.groups) == (
        "alice",
        frozenset(RIGHTS.values()),
        None,
    )
    assert 3500 < principal.expires_at_s - time.time() <= 3600
    assert principal.token_id
    tenant("set", acme, "--audience", "chat", "--issuer", "https://login.example.com")
    with pytest.raises(Refused):
        bearer(tenant, acme, tenant(*words, "--json").json["token"].rpartition(".")[0] + ".AAAA")
    assert bearer(tenant, acme, tenant(*words).out.strip()).user == "alice"


def test_a_token_grants_what_its_options_name(tenant: CommandLine, acme: str) -> None:
    tenant("signing-key", "add", acme, "--kid", "k", "--secret-stdin", stdin=SECRET)
    # Another setting changes; the secret, which is never returned, stays.
    tenant("set", acme, "--audience", "chat")
    words = ("--agent", "a", "--platform", "web", "--conversation", "group:g", "--right", "subscribe")
    made = tenant(
        "token", acme, "--user", "bob", *words, "--expires", "2d", "--secret-stdin", "--json", stdin=SECRET
    ).json
    principal = bearer(tenant, acme, made["token"], SECRET)
    assert (principal.addresses.agents, principal.addresses.platforms) == ({"a"}, {"web"})
    assert (principal.addresses.persons, principal.addresses.groups) == (frozenset(), {"g"})
    assert principal.rights == {RIGHTS["subscribe"]}
    assert (made["kid"], made["claims"]["jti"]) == ("k", principal.token_id)
    assert made["claims"]["exp"] - made["claims"]["iat"] == 2 * 86400


def test_a_key_unknown_to_the_tenant_signs_only_if_named(
    tenant: CommandLine, acme: str, tmp_path: Path
) -> None:
    file = tmp_path / "private"
    file.write_bytes(PRIVATE["ES256"].as_pem(private=True))
    words = ("token", acme, "--user", "ann", "--private-key-file", str(file))
    assert "has no signing key that belongs to this private key" in tenant.refusal(*words)
    assert tenant(*words, "--kid", "elsewhere", "--json").json["kid"] == "elsewhere"
    file.write_bytes(PRIVATE["ES256"].as_pem(private=False))
    assert "holds a public key" in tenant.refusal(*words)
    file.write_bytes(b"no key")
    assert "holds no private key" in tenant.refusal(*words)
    for kid in ("k1", "k2"):
        tenant("signing-key", "add", acme, "--kid", kid, "--secret-stdin", stdin=SECRET)
    secret = ("token", acme, "--user", "ann", "--secret-stdin")
    assert tenant.refusal(*secret, stdin=SECRET).endswith("--kid: k1, k2")
    assert tenant(*secret, "--kid", "k2", "--json", stdin=SECRET).json["kid"] == "k2"


@pytest.mark.parametrize("words", [("--expires", "367d"), ("--expires", "0"), ("--expires", "soon"), ()])
def test_a_token_that_edges_would_reject_is_not_created(
    words: tuple[str, ...], tenant: CommandLine, acme: str
) -> None:
    key = ("--secret-stdin",) if words else ()
    assert tenant.run("token", acme, "--user", "ann", *key, *words, stdin=SECRET).code == 2


def test_revocations_of_tokens_are_listed(tenant: CommandLine, acme: str) -> None:
    assert tenant("revocations", acme).out == f"{acme} has no revocations.\n"
    assert tenant("revoke", acme, "--user", "ann").out == "Tokens revoked; connections closed: 0.\n"
    assert tenant("revoke", acme, "--token-id", "t1", "--json").json == {"connections": 0}
    tenant("revoke", acme, "--all")
    assert tenant.run("revoke", acme).code == 2
    assert tenant.run("revoke", acme, "--all", "--user", "ann").code == 2
    listed = tenant("revocations", acme, "--json").json
    assert sorted(each.get("user") or each.get("tokenId") or "all" for each in listed) == ["all", "ann", "t1"]
    table = tenant("revocations", acme).out
    assert all(fact in table for fact in ("ann", "t1", "all", "UTC"))


def test_all_pages_of_revocations_are_listed(tenant: CommandLine, acme: str) -> None:
    for number in range(101):
        tenant("revoke", acme, "--token-id", f"t{number}")
    assert len(tenant("revocations", acme, "--json").json) == 101
