"""Background work while the log is unavailable now and then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trunkline.v1.tenant_pb2 import TenantSettings
from trunkline_router.audit_trail import AuditTrail
from trunkline_router.log.data_key_settings import DataKeyFile
from trunkline_router.log.engines import open_database
from trunkline_router.log.interface import LogUnavailable
from trunkline_router.maintenance import Maintenance
from trunkline_router.settings import RouterSettings
from trunkline_router.tenant_admin import TenantAdmin
from trunkline_router.tenant_reconciler import TenantReconciler
from trunkline_router.term import make_runtime


async def test_the_last_use_of_a_key_outlives_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RouterSettings(data_dir=tmp_path)
    owned = await open_database(settings).acquire(lambda: None)
    log = owned.log
    runtime = make_runtime(settings, owned)
    audit = AuditTrail(runtime.log)
    admin = TenantAdmin(runtime, audit)
    await admin.create("acme", TenantSettings())
    _, secret = await admin.create_key("acme", "", [])
    runtime.core.api_keys.authenticate(secret, 1_000_000)
    maintenance = Maintenance(
        runtime, admin, TenantReconciler(settings, admin), DataKeyFile(None, log), audit
    )

    async def unavailable(_: Any) -> None:
        raise LogUnavailable("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(log, "register", unavailable)
        with pytest.raises(LogUnavailable):
            await maintenance._run_round()
    await maintenance._run_round()
    [key] = (await log.registered()).api_keys
    assert key.used_ms == 1_000_000
    await log.close()
