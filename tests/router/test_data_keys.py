"""Data keys from settings and files, and tenants that want their messages encrypted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import TenantSettings
from trunkline_router.audit_trail import AuditTrail
from trunkline_router.log.data_key_settings import DataKeyFile
from trunkline_router.log.engines import open_database
from trunkline_router.settings import RouterSettings
from trunkline_router.tenant_admin import TenantAdmin
from trunkline_router.tenant_reconciler import TenantReconciler
from trunkline_router.term import make_runtime
from trunkline_runtime.process import StartError

from tests.router.log.test_encryption import data_keys, row
from tests.support.router_log import open_log

ENCRYPTED = TenantSettings(encrypt_messages=True)


def settings(folder: Path, **given: Any) -> RouterSettings:
    return RouterSettings(data_dir=folder / "data", **given)


async def admin_of(given: RouterSettings) -> TenantAdmin:
    owned = await open_database(given).acquire(lambda: None)
    runtime = make_runtime(given, owned)
    await runtime.load()
    return TenantAdmin(runtime, AuditTrail(owned.log))


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[TenantAdmin]:
    """The tenants of a router without a data key."""
    admin = await admin_of(settings(tmp_path))
    yield admin
    await admin._log.close()


# Tenants


async def test_messages_cannot_be_encrypted_without_a_data_key(
    admin: TenantAdmin,
) -> None:
    with pytest.raises(Refused, match="tenant acme: the router has no data key; set TRUNKLINE_DATA_KEY"):
        await admin.create("acme", ENCRYPTED)
    assert admin.known("acme") is None
    await admin.create("acme", TenantSettings())
    with pytest.raises(Refused) as refused:
        await admin.update("acme", ENCRYPTED, ["encrypt_messages"])
    assert refused.value.entry == catalogue.NO_DATA_KEY
    assert admin.tenant("acme").settings == TenantSettings()


async def test_a_tenants_file_that_wants_encryption_needs_a_data_key(
    admin: TenantAdmin, tmp_path: Path
) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text("[tenants.acme]\nencrypt_messages = true")
    reconciler = TenantReconciler(settings(tmp_path, tenants_file=file), admin)
    with pytest.raises(StartError, match=r"^TRUNKLINE_TENANTS_FILE: .*no data key"):
        await reconciler.apply()


async def test_encryption_is_switched_on_with_a_data_key_and_edges_do_not_hear_of_it(tmp_path: Path) -> None:
    admin = await admin_of(settings(tmp_path, data_key=SecretStr(row(1))))
    await admin.create("acme", TenantSettings())
    tenant = await admin.update("acme", ENCRYPTED, ["encrypt_messages"])
    assert tenant.to_proto().settings.encrypt_messages
    assert not tenant.policy().settings.encrypt_messages
    await admin._log.close()


# Settings


@pytest.mark.parametrize(
    ("keys", "file", "problem"),
    [
        ("x", None, "TRUNKLINE_DATA_KEY: row 1 is not base64 of 32 bytes"),
        (row(1), row(1), "TRUNKLINE_DATA_KEY and TRUNKLINE_DATA_KEY_FILE are both set"),
        ("", "", "TRUNKLINE_DATA_KEY_FILE .*keys holds no key"),
        ("", f"{row(1)}\nschlüssel", "TRUNKLINE_DATA_KEY_FILE: .*keys is not ASCII"),
        ("", f"{row(1)}\n{row(2)[1:]}", "TRUNKLINE_DATA_KEY_FILE .*keys: row 2 is not base64"),
        ("", None, "TRUNKLINE_DATA_KEY_FILE: .*keys: No such file or directory"),
    ],
)
async def test_invalid_settings_are_refused_in_a_line_that_names_them_and_no_key(
    tmp_path: Path, keys: str, file: str | None, problem: str
) -> None:
    path = tmp_path / "keys"
    if file is not None:
        path.write_text(file, encoding="utf-8")
    given = settings(tmp_path, data_key=SecretStr(keys), data_key_file=None if keys == "x" else path)
    with pytest.raises(StartError, match=problem) as refused:
        await open_log(given)
    assert row(1) not in str(refused.value)
    assert "TRUNKLINE_DATA_DIR" not in str(refused.value)


async def test_a_log_without_its_data_key_is_refused_with_the_key_id(tmp_path: Path) -> None:
    await (await open_log(settings(tmp_path, data_key=SecretStr(row(1))))).close()
    for given in ({}, {"data_key": SecretStr(row(2))}):
        with pytest.raises(
            StartError, match=f"TRUNKLINE_DATA_KEY.*|{data_keys(1).current.key_id}"
        ) as refused:
            await open_log(settings(tmp_path, **given))
        assert data_keys(1).current.key_id in str(refused.value)


# The file


async def test_a_changed_file_rotates_the_key_and_an_invalid_one_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys"

    def write(*rows: str) -> None:
        path.with_suffix(".new").write_text("\n".join(rows))
        path.with_suffix(".new").replace(path)

    write(row(1))
    log = await open_log(settings(tmp_path, data_key_file=path))
    file = DataKeyFile(path, log)
    with capture_logs() as lines:
        await file.refresh()
        await file.refresh()
        assert lines == []
        write("nonsense")
        await file.refresh()
        await file.refresh()
        write(row(2), row(1))
        await file.refresh()
        await file.refresh()
    assert [(line["log_level"], line.get("current"), line.get("tenant_keys_wrapped")) for line in lines] == [
        ("error", None, None),
        ("info", data_keys(2).current.key_id, 1),
    ]
    assert "nonsense" not in str(lines)
    await log.close()
    write(row(2))
    await (await open_log(settings(tmp_path, data_key_file=path))).close()


async def test_a_data_key_without_a_file_is_not_followed(tmp_path: Path) -> None:
    log = await open_log(settings(tmp_path, data_key=SecretStr(row(1))))
    await DataKeyFile(None, log).refresh()
    await log.close()
