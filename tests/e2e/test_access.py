"""Tenant management over HTTP, and the permissions of API keys until they are revoked."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from trunkline_edge.http.bindings import bindings

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.http_backend import HttpBackend, reason_of
from tests.support.patience import patient

if TYPE_CHECKING:
    from collections.abc import Iterator

#: RPCs of TenantService that the tests here call.
CALLED = {
    "CreateTenant", "GetTenant", "ListTenants", "UpdateTenant", "SuspendTenant", "ResumeTenant",
    "DeleteTenant", "CreateApiKey", "ListApiKeys", "RevokeApiKey", "RevokeTokens", "ListRevocations",
    "EraseUser",
}  # fmt: skip
ROOM = {"agent": "echo", "platform": "web", "conversation": {"kind": "CONVERSATION_KIND_GROUP", "id": "room"}}


def broadcast_body(words: str) -> dict[str, object]:
    """Body of a broadcast to the room."""
    return {"address": ROOM, "parts": [{"text": {"text": words}}]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("access")


@pytest.fixture(scope="module")
def fleet(data: Path) -> Iterator[Fleet]:
    with fleet_of(data, TRUNKLINE_OPERATOR_KEY="") as started:
        yield started


@pytest.fixture
def edge(fleet: Fleet) -> str:
    return next(process.address for process in fleet.processes if process.name == "edge")


@pytest.fixture
def operator(edge: str, data: Path) -> Iterator[httpx.Client]:
    key = (data / "operator.key").read_text().strip()
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(
        base_url=f"http://{edge}/v1", headers=headers, trust_env=False, timeout=patient(15)
    ) as client:
        yield client


def create_api_key(operator: httpx.Client, tenant: str, *scopes: str) -> tuple[str, str]:
    """Create an API key of a tenant, and the tenant if necessary; return id and secret."""
    operator.post("/tenants", json={"tenant": tenant})
    asked = {"name": "tests", "scopes": [f"SCOPE_{scope}" for scope in scopes]}
    answer = operator.post(f"/tenants/{tenant}/apiKeys", json=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()["apiKey"]["keyId"], answer.json()["secret"]


def outcome(response: httpx.Response) -> tuple[int, str]:
    """Return the status, and the error code if there is one."""
    return response.status_code, reason_of(response) if response.is_error else ""


def test_the_data_folder_is_open_to_its_owner_only(fleet: Fleet, data: Path) -> None:
    modes = {path.name: f"{stat.S_IMODE(path.stat().st_mode):04o}" for path in data.rglob("*")}
    assert modes.pop("media") == "0700"
    assert modes.keys() >= {"operator.key", "trunkline.db", "trunkline.db-wal", "trunkline.db.lock"}
    assert set(modes.values()) == {"0600"}, modes
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    path = data / "operator.key"
    assert not any(path.read_text().strip() in process.stderr for process in fleet.processes)


def test_an_operator_creates_changes_suspends_and_deletes_a_tenant(operator: httpx.Client) -> None:
    new = {"tenant": "acme", "settings": {"limits": {"connections": 5}}}
    created = operator.post("/tenants", json=new).json()["tenant"]
    assert (created["state"], created["settings"]["openTo"]) == ("TENANT_STATE_ACTIVE", "OPENNESS_NOBODY")
    assert outcome(operator.post("/tenants", json=new)) == (409, "TENANT_EXISTS")
    changes = {"settings": {"openTo": "OPENNESS_ANYBODY"}, "updateMask": "openTo"}
    changed = operator.patch("/tenants/acme", json=changes).json()["tenant"]
    assert changed["settings"]["openTo"] == "OPENNESS_ANYBODY"
    assert changed["settings"]["limits"]["connections"] == 5
    assert operator.get("/tenants/acme").json()["tenant"] == changed
    assert "acme" in [tenant["tenant"] for tenant in operator.get("/tenants").json()["tenants"]]
    assert operator.post("/tenants/acme:suspend").json()["tenant"]["state"] == "TENANT_STATE_SUSPENDED"
    assert outcome(operator.get("/tenants/acme/stats")) == (403, "TENANT_SUSPENDED")
    assert operator.post("/tenants/acme:resume").json()["tenant"]["state"] == "TENANT_STATE_ACTIVE"
    assert outcome(operator.get("/tenants/acme/stats")) == (200, "")
    assert operator.post("/tenants/acme/messages", json=broadcast_body("hi")).status_code == 200
    assert operator.delete("/tenants/acme").json() == {"messages": "1"}
    assert outcome(operator.get("/tenants/acme")) == (404, "UNKNOWN_TENANT")


def test_a_tenant_admin_manages_only_its_own_keys_and_users(edge: str, operator: httpx.Client) -> None:
    key_id, secret = create_api_key(operator, "managed", "ADMIN", "BROADCAST")
    with HttpBackend(edge, "managed", authorization=f"Bearer {secret}") as admin:
        listed = admin.get("/apiKeys")["apiKeys"]
        assert [(key["keyId"], key["scopes"]) for key in listed] == [
            (key_id, ["SCOPE_BROADCAST", "SCOPE_ADMIN"])
        ]
        assert "lastUsedAt" in listed[0]
        other = admin.post("/apiKeys", scopes=["SCOPE_PRESENCE"])["apiKey"]["keyId"]
        assert admin.http.delete(f"/apiKeys/{other}").status_code == 200
        assert outcome(admin.http.delete(f"/apiKeys/{other}")) == (404, "API_KEY_NOT_FOUND")
        admin.post("/messages", address=ROOM, parts=[{"text": {"text": "mine"}}], author={"user": "ann"})
        assert admin.post("/tokens:revoke", user="ann") == {"connections": 0}
        assert [each["user"] for each in admin.get("/revocations")["revocations"]] == ["ann"]
        assert admin.post("/users/ann:erase")["messages"] == "1"
        tenants = f"http://{edge}/v1/tenants"
        for refused in (
            admin.http.get("/stats"),
            admin.http.patch(f"{tenants}/managed", json={"settings": {}}),
            admin.http.delete(f"{tenants}/managed"),
            admin.http.get(tenants),
            admin.http.get(f"{tenants}/demo"),
            admin.http.get(f"{tenants}/nobody"),
        ):
            assert outcome(refused) == (403, "FORBIDDEN")


def test_what_administrators_did_is_listed_and_logged(
    fleet: Fleet, edge: str, operator: httpx.Client, data: Path
) -> None:
    key_id, secret = create_api_key(operator, "audited", "ADMIN")
    with HttpBackend(edge, "audited", authorization=f"Bearer {secret}") as admin:
        admin.post("/tokens:revoke", user="ann")
        assert outcome(admin.http.delete(f"http://{edge}/v1/tenants/audited")) == (403, "FORBIDDEN")
        assert outcome(admin.http.get(f"http://{edge}/v1/audit")) == (403, "FORBIDDEN")
        deadline = time.monotonic() + patient(15)
        while len(found := admin.get("/audit")["entries"]) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    source = "127.0.0.1 via edge 127.0.0.1"
    assert [(e["action"], e["actor"], e["source"], e.get("error", "")) for e in found] == [
        ("DeleteTenant", f"key:{key_id}", source, "FORBIDDEN"),
        ("RevokeTokens", f"key:{key_id}", source, ""),
        ("CreateApiKey", "operator", source, ""),
        ("CreateTenant", "operator", source, ""),
    ]
    assert outcome(httpx.get(f"http://{edge}/v1/audit", trust_env=False)) == (401, "UNAUTHORIZED")
    of_all = operator.get("/audit").json()["entries"]
    assert [e for e in of_all if e["tenant"] == "audited"] == found
    assert len(of_all) > len(found)
    newest = operator.get(f"/audit?action=RevokeTokens&since={found[1]['at']}").json()["entries"]
    assert newest == [found[1]]
    lines = [json.loads(line) for line in fleet.router.stderr.splitlines() if '"audit"' in line]
    logged = [line["action"] for line in lines if line.get("tenant") == "audited"]
    assert logged == ["CreateTenant", "CreateApiKey", "RevokeTokens", "DeleteTenant:refused"]
    command = [sys.executable, "-m", "trunkline_router", "audit", "--tenant", "audited", "--json"]
    env = os.environ | {"TRUNKLINE_ROUTER": fleet.router.address, "TRUNKLINE_DATA_DIR": str(data)}
    listed = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert [json.loads(line)["id"] for line in listed.splitlines()] == [e["id"] for e in found]


def test_every_rpc_of_the_tenant_service_is_called_here() -> None:
    service = {b.method.name for b in bindings() if b.method.containing_service.name == "TenantService"}
    assert service == CALLED


def test_a_key_is_valid_until_revoked_and_for_its_tenant_only(
    fleet: Fleet, edge: str, operator: httpx.Client
) -> None:
    key_id, secret = create_api_key(operator, "keyed", "PRESENCE")
    with HttpBackend(edge, "keyed", authorization=f"Bearer {secret}") as backend:
        assert backend.get("/stats")["connections"] == 0
        assert outcome(backend.http.post("/messages", json=broadcast_body("x"))) == (403, "FORBIDDEN")
        assert operator.delete(f"/tenants/keyed/apiKeys/{key_id}").status_code == 200
        assert outcome(backend.http.get("/stats")) == (401, "UNAUTHORIZED")
    with HttpBackend(edge, "demo", authorization=f"Bearer {secret}") as wrong:
        # A wrong key is rejected even if the tenant requires none.
        assert outcome(wrong.http.get("/stats")) == (401, "UNAUTHORIZED")
    with HttpBackend(edge, "demo") as anybody:
        assert outcome(anybody.http.get("/stats")) == (200, "")
        proxied = anybody.http.get("/stats", headers={"x-forwarded-for": "203.0.113.5"})
        assert outcome(proxied) == (401, "UNAUTHORIZED")
    assert "a call was refused" in fleet.router.stderr
    assert not any(secret in process.stderr for process in fleet.processes)


def test_a_stream_of_events_ends_when_its_key_is_revoked(edge: str, operator: httpx.Client) -> None:
    key_id, secret = create_api_key(operator, "watched", "PRESENCE")
    lines: list[str] = []
    opened = threading.Event()

    def watch() -> None:
        url = f"http://{edge}/v1/tenants/watched/connections:watch"
        headers = {"x-api-key": secret}
        with httpx.stream("GET", url, headers=headers, trust_env=False, timeout=patient(15)) as response:
            for line in response.iter_lines():
                lines.append(line)
                opened.set()

    thread = threading.Thread(target=watch)
    thread.start()
    assert opened.wait(10)
    operator.delete(f"/tenants/watched/apiKeys/{key_id}")
    thread.join(2)
    assert not thread.is_alive()
    assert "event: error" in lines
    assert any("UNAUTHORIZED" in line for line in lines)
