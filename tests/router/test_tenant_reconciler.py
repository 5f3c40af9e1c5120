"""Applies the tenants file while the log is unavailable now and then."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from trunkline.v1.tenant_pb2 import TenantSettings
from trunkline_router.log.interface import LogUnavailable
from trunkline_router.settings import RouterSettings
from trunkline_router.tenant_reconciler import TenantReconciler


class Admin:
    """A TenantAdmin whose log may be unavailable."""

    def __init__(self) -> None:
        self.is_log_available = True
        self.ensured: list[list[str]] = []

    def known(self, name: str) -> None:
        return None

    async def ensure(self, tenants: Mapping[str, TenantSettings], actor: str) -> None:
        if not self.is_log_available:
            raise LogUnavailable("disk full")
        if tenants:
            self.ensured.append(list(tenants))


def write(path: Path, text: str) -> None:
    path.write_text(text)


async def reconciling(path: Path) -> tuple[TenantReconciler, Any]:
    """Return a reconciler that has applied the file, and its admin."""
    write(path, "[tenants.a]")
    admin: Any = Admin()
    reconciler = TenantReconciler(RouterSettings(tenants_file=path), admin)
    await reconciler.apply()
    return reconciler, admin


async def test_a_change_is_applied_once_the_log_is_available_again(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    reconciler, admin = await reconciling(path)
    write(path, "[tenants.a]\n[tenants.b]")
    admin.is_log_available = False
    with pytest.raises(LogUnavailable):
        await reconciler.refresh()
    admin.is_log_available = True
    for _ in range(2):
        await reconciler.refresh()
    assert admin.ensured == [["a"], ["a", "b"]]


async def test_an_invalid_file_is_logged_once(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    reconciler, admin = await reconciling(path)
    write(path, "[tenants.b")
    with capture_logs() as logs:
        for _ in range(2):
            await reconciler.refresh()
    assert [line["log_level"] for line in logs] == ["error"]
    assert admin.ensured == [["a"]]
