"""Commands that create, show, change, suspend and delete tenants."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import grpc
import pytest
from trunkline.v1.address_pb2 import Address
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest
from trunkline.v1.broadcast_service_pb2_grpc import BroadcastServiceStub
from trunkline.v1.message_pb2 import Part, TextPart

from tests.router.cli.command_line import OPERATOR, CommandLine
from tests.support.patience import patient
from tests.support.processes import router_process

ALL = (
    ("--open-to", "loopback"),
    ("--agent", "helper"),
    ("--pipeline", "p1", "--pipeline", "p2"),
    ("--workspace", "w1"),
    ("--web-page-bot", "b1"),
    ("--origin", "https://example.com"),
    ("--audience", "chat"),
    ("--allow-credentials",),
    ("--issuer", "https://login.example.com"),
    ("--jwks-url", "https://login.example.com/jwks.json"),
    ("--tokens-stdin",),
    ("--limit", "connections=500", "--limit", "bytes_per_s=4MiB"),
    ("--max-age", "30d"),
    ("--max-messages", "1000"),
    ("--max-bytes", "1GiB"),
    ("--encrypt-messages",),
    ("--exclude-background-tasks",),
)
SETTINGS = {
    "openTo": "OPENNESS_LOOPBACK",
    "defaultAgent": "helper",
    "pipelines": ["p1", "p2"],
    "workspaces": ["w1"],
    "webPageBots": ["b1"],
    "origins": ["https://example.com"],
    "allowCredentials": True,
    "clientAuth": {
        "keys": [],
        "audiences": ["chat"],
        "issuer": "https://login.example.com",
        "jwksUrl": "https://login.example.com/jwks.json",
        "tokenDigests": [sha256(b"one secret").hexdigest(), sha256(b"another").hexdigest()],
    },
    "retention": {"maxAgeS": "2592000", "maxMessages": "1000", "maxBytes": str(1 << 30)},
    "encryptMessages": True,
    "excludeBackgroundTasks": True,
}


def broadcast(router: str, tenant: str, text: str, user: str = "") -> None:
    """Broadcast a message as a backend."""
    request = BroadcastRequest(address=Address(tenant=tenant, user=user or "ann"))
    request.parts.append(Part(text=TextPart(text=text)))
    request.author.user = user
    metadata = (("authorization", f"Bearer {OPERATOR}"),)
    with grpc.insecure_channel(router) as channel:
        BroadcastServiceStub(channel).Broadcast(request, metadata=metadata, timeout=patient(5))  # type: ignore[arg-type]


def test_every_setting_is_set_and_shown(tenant: CommandLine) -> None:
    options = [word for option in ALL for word in option]
    made = tenant("create", "all", "--json", *options, stdin="one secret\n\n another \n").json
    limits = made["settings"].pop("limits")
    assert made["settings"].pop("agents") == {}
    assert {name: value for name, value in limits.items() if value not in (0, "0")} == {
        "connections": 500,
        "bytesPerS": str(4 << 20),
    }
    assert made["settings"] == SETTINGS
    assert (made["tenant"], made["state"]) == ("all", "TENANT_STATE_ACTIVE")
    shown = tenant("show", "all")
    assert [shown.out.count(each) for each in ("one secret", "another")] == [0, 0]
    for fact in ("helper", "p1, p2", "connections 500, bytes_per_s 4MiB", "at most 30d", "at most 1GiB"):
        assert fact in shown.out
    tenant("delete", "all", "--yes")


def test_a_tenant_without_options_is_open_to_nobody(tenant: CommandLine, acme: str) -> None:
    shown = tenant("show", acme).out
    assert [" ".join(line.split()) for line in shown.splitlines() if "created" not in line] == [
        f"tenant {acme}",
        "state active",
        next(" ".join(line.split()) for line in shown.splitlines() if "updated" in line),
        "open to nobody",
        "origins any",
        "limits defaults",
        "history kept forever",
    ]


@pytest.mark.parametrize("option", ALL, ids=lambda option: option[0])
def test_set_changes_only_the_named_settings(option: tuple[str, ...], tenant: CommandLine, acme: str) -> None:
    others = [word for other in ALL if other[0] != option[0] for word in other]
    before = non_default(tenant("set", acme, *others, "--json", stdin="a secret").json["settings"])
    after = non_default(tenant("set", acme, *option, "--json", stdin="another secret").json["settings"])
    assert len(after.items() - before.items()) == (2 if option[0] == "--limit" else 1)
    assert before.keys() <= after.keys()
    tenant("delete", acme, "--yes")


def non_default(settings: object, path: str = "") -> dict[str, str]:
    """The settings that have a value, by path."""
    if not isinstance(settings, dict):
        return {} if settings in (0, "0", "", [], "OPENNESS_NOBODY") else {path: str(settings)}
    found: dict[str, str] = {}
    for name, value in settings.items():
        found |= non_default(value, f"{path}.{name}")
    return found


def test_lists_limits_and_retention_are_cleared(tenant: CommandLine, acme: str) -> None:
    tenant("set", acme, "--origin", "https://a.example", "--limit", "connections=5", "--max-age", "1d")
    words = ("--origin", "", "--limit", "connections=0", "--max-age", "forever", "--json")
    settings = tenant("set", acme, *words).json["settings"]
    assert settings["origins"] == []
    assert settings["limits"]["connections"] == 0
    assert settings["retention"]["maxAgeS"] == "0"


def test_setting_the_same_value_changes_nothing(tenant: CommandLine, acme: str) -> None:
    before = tenant("set", acme, "--agent", "helper", "--json").json
    assert tenant("set", acme, "--agent", "helper", "--json").json == before


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "name at least one option"),
        (("--limit", "connection=5"), "'connection' is not a limit; the limits are connections,"),
        (("--limit", "connections"), "connections must be a number, not ''"),
        (("--limit", "connections=4MiB"), "connections must be a number, not '4MiB'"),
        (("--limit", "connections=4294967296"), "connections must be at most 4294967295"),
        (("--limit", f"connections={'9' * 5000}"), "connections must be at most 4294967295"),
        (("--limit", "frame_bytes=1MB"), "'1MB' is not a size such as"),
        (("--max-age", "1y"), "'1y' is not a duration such as"),
        (("--max-bytes", "-1"), "'-1' is not a size such as"),
        (("--max-bytes", "999999999999999999GiB"), "max_bytes must be at most 9223372036854775807"),
        (("--max-messages", "-1"), "greater than or equal to"),
        (("--max-messages", str(2**64)), "max_messages must be at most 9223372036854775807"),
        (("--max-messages", str(2**63)), "max_messages must be at most 9223372036854775807"),
        (("--open-to", "all"), "'all' is not one of"),
    ],
)
def test_an_invalid_option_is_rejected_before_any_call(
    words: tuple[str, ...], problem: str, tenant: CommandLine, acme: str
) -> None:
    answer = tenant.run("set", acme, *words)
    assert answer.code == 2
    assert problem in " ".join(answer.err.replace("│", "").split())


def test_a_refusal_of_the_router_is_one_line(tenant: CommandLine, acme: str) -> None:
    assert tenant.refusal("create", acme) == f"Tenant {acme} already exists (TENANT_EXISTS)"
    assert tenant.refusal("show", "nobody") == "Tenant nobody does not exist (UNKNOWN_TENANT)"
    assert tenant.refusal("set", acme, "--origin", "x").startswith("settings.origins[0]: must be a scheme")
    assert tenant.refusal("show", "a b").endswith("(INVALID_ARGUMENT)")


def test_all_pages_of_tenants_are_listed(tmp_path: Path) -> None:
    names = [f"t{number:03}" for number in range(205)]
    env = {"TRUNKLINE_TENANTS": ",".join(names), "TRUNKLINE_OPERATOR_KEY": OPERATOR}
    with router_process(tmp_path, **env) as router:
        tenant = CommandLine(router.address)
        assert [each["tenant"] for each in tenant("list", "--json").json] == names
        table = tenant("list").out
        assert all(name in table for name in names)
        assert table.count("loopback") == 205


def test_a_router_without_tenants_says_so(tmp_path: Path) -> None:
    with router_process(tmp_path, TRUNKLINE_TENANTS="", TRUNKLINE_OPERATOR_KEY=OPERATOR) as router:
        tenant = CommandLine(router.address)
        assert tenant("list").out == "There are no tenants.\n"
        assert tenant("list", "--json").json == []


def test_a_tenant_is_suspended_and_resumed(tenant: CommandLine, acme: str) -> None:
    assert tenant("suspend", acme).out == f"{acme} is suspended; its data is kept.\n"
    assert tenant("show", acme, "--json").json["state"] == "TENANT_STATE_SUSPENDED"
    assert tenant("resume", acme, "--json").json["state"] == "TENANT_STATE_ACTIVE"


def test_a_tenant_is_deleted_once_its_name_is_typed(tenant: CommandLine, acme: str) -> None:
    for text in ("one", "two"):
        broadcast(tenant.router, acme, text)
    kept = tenant.run("delete", acme, stdin="acme\n")
    assert kept.code == 1
    assert f"The name does not match; {acme} was not deleted" in kept.err
    assert tenant.run("delete", acme, stdin="").code == 1
    tenant("show", acme)
    deleted = tenant("delete", acme, stdin=f"{acme}\n")
    # The runner echoes the input before the output.
    assert deleted.out.endswith(f"{acme} is deleted; 2 messages were erased.\n")
    assert "UNKNOWN_TENANT" in tenant.refusal("delete", acme, "--yes")


def test_yes_deletes_without_confirmation(tenant: CommandLine, acme: str) -> None:
    broadcast(tenant.router, acme, "one")
    assert tenant("delete", acme, "--yes", "--json").json == {"messages": "1"}


def test_a_user_is_erased(tenant: CommandLine, acme: str) -> None:
    for text in ("one", "two"):
        broadcast(tenant.router, acme, text, "bob")
    assert "Nothing was erased" in tenant.run("erase-user", acme, "bob", stdin="n\n").err
    erased = tenant("erase-user", acme, "bob", stdin="y\n").out
    assert erased.endswith("2 messages and 0 receipts were erased.\n")
    assert tenant("erase-user", acme, "bob", "--yes", "--json").json == {"messages": "0", "receipts": "0"}
