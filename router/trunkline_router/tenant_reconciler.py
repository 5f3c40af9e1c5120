"""Applies the tenants that the environment and the tenants file declare."""

from __future__ import annotations

from collections.abc import Mapping

import structlog
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import OPENNESS_ANYBODY, OPENNESS_LOOPBACK, TenantSettings
from trunkline.v1.tenant_service_pb2 import CreateTenantRequest
from trunkline_runtime.process import StartError

from trunkline_router.core.validation.validator import check
from trunkline_router.settings import RouterSettings
from trunkline_router.tenant_admin import TenantAdmin
from trunkline_router.tenants_file import TenantsFile

_log = structlog.get_logger()


class TenantReconciler:
    """Brings tenants to their declared settings at start and whenever the file changes.

    Tenants that are not declared there are left alone.
    """

    def __init__(self, settings: RouterSettings, admin: TenantAdmin) -> None:
        self._settings = settings
        self._admin = admin
        self._file = TenantsFile(settings.tenants_file) if settings.tenants_file else None

    async def apply(self) -> None:
        """Apply both sources at start; the file wins. Raises StartError if either is invalid."""
        in_file = self._file.load() if self._file else {}
        openness = OPENNESS_ANYBODY if self._settings.open_to == "any" else OPENNESS_LOOPBACK
        in_environment = {}
        for name in self._settings.tenants:
            if name not in in_file:
                wanted = in_environment[name] = TenantSettings()
                if known := self._admin.known(name):
                    wanted.CopyFrom(known.settings)
                wanted.open_to = openness
        await self._ensure("TRUNKLINE_TENANTS", in_environment, "environment")
        await self._ensure("TRUNKLINE_TENANTS_FILE", in_file, "tenants-file")
        if self._file:
            self._file.mark_handled()

    async def refresh(self) -> None:
        """Apply the file if it changed; an invalid file is logged once and changes nothing.

        Raises LogUnavailable; the next call then tries again.
        """
        if self._file is None or not self._file.changed():
            return
        try:
            await self._ensure("TRUNKLINE_TENANTS_FILE", self._file.load(), "tenants-file")
        except StartError as error:
            _log.error("tenants file is invalid; its previous content stays in force", problem=str(error))
        else:
            _log.info("tenants file reloaded")
        self._file.mark_handled()

    async def _ensure(self, source: str, tenants: Mapping[str, TenantSettings], actor: str) -> None:
        try:
            for name, settings in tenants.items():
                check(CreateTenantRequest(tenant=name, settings=settings), f"tenant {name}")
            await self._admin.ensure(tenants, actor)
        except Refused as reason:
            raise StartError(f"{source}: {reason}") from None
