"""The command `trunkline-router audit` lists who changed what."""

from __future__ import annotations

import json
from typing import Any

import pytest
from trunkline_router.__main__ import main
from trunkline_router.cli import audit_command
from typer.testing import CliRunner

from tests.router.cli.command_line import OPERATOR, CommandLine


def audit(tenant: CommandLine, *words: str) -> str:
    env = {"TRUNKLINE_ROUTER": tenant.router, "TRUNKLINE_OPERATOR_KEY": OPERATOR, "COLUMNS": "250"}
    result = CliRunner().invoke(audit_command.app, list(words), env=env)
    assert result.exit_code == 0, result
    return result.stdout


def listed(tenant: CommandLine, *words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in audit(tenant, *words, "--json").splitlines()]


def test_entries_are_one_line_of_json_each_as_a_restore_takes_them(tenant: CommandLine, acme: str) -> None:
    tenant("suspend", acme)
    tenant("resume", acme)
    tenant("revoke", acme, "--user", "all")
    revoked, resumed, suspended, created = listed(tenant, "--tenant", acme)
    assert [each["action"] for each in (revoked, resumed, suspended, created)] == [
        "RevokeTokens",
        "ResumeTenant",
        "SuspendTenant",
        "CreateTenant",
    ]
    assert suspended["before"] == {"state": "TENANT_STATE_ACTIVE"}
    assert {each["actor"] for each in (revoked, created)} == {"operator"}
    assert (revoked["target"], revoked["after"]["user"], revoked["error"]) == ("all", "all", "")
    assert revoked["at_ms"] == revoked["after"]["revoked_ms"]
    assert created["source"] == "127.0.0.1"
    assert listed(tenant, "--tenant", acme, "--action", "RevokeTokens") == [revoked]
    assert listed(tenant, "--tenant", acme, "--limit", "1") == [revoked]
    assert listed(tenant, "--tenant", acme, "--since", "0s") == []
    assert listed(tenant, "--tenant", acme, "--since", "1h") == [revoked, resumed, suspended, created]


def test_all_pages_are_listed(tenant: CommandLine, acme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_command, "MAX_PAGE", 2)
    for _ in range(4):
        tenant("suspend", acme)
    for limit, expected in (("0", 5), ("3", 3)):
        found = listed(tenant, "--tenant", acme, "--limit", limit)
        assert len(found) == expected
        assert len({each["id"] for each in found}) == expected


def test_the_default_is_a_table(tenant: CommandLine, acme: str) -> None:
    text = audit(tenant, "--tenant", acme)
    assert "CreateTenant" in text
    assert "operator" in text
    assert audit(tenant, "--tenant", "nobody").strip() == "There are no entries."


def test_it_is_a_command_of_the_router(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["trunkline-router", "audit", "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "--tenant" in capsys.readouterr().out
