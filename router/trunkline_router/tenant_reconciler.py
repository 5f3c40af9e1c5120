"""Tenants that the environment and a file declare."""

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
    """Has the tenants be as the environment and the file say: at start, and when the file has changed.

    Tenants that are named nowhere there are left alone.
    """

    def __init__(self, settings: RouterSettings, registry: TenantAdmin) -> None:
        self._settings = settings
        self._registry = registry
        self._file = TenantsFile(settings.tenants_file) if settings.tenants_file else None

    async def apply(self) -> None:
        """At start. Raises StartError where something is not valid."""
        in_file = self._file.load() if self._file else {}
        openness = OPENNESS_ANYBODY if self._settings.open_to == "any" else OPENNESS_LOOPBACK
        in_environment = {}
        for name in self._settings.tenants:
            if name not in in_file:
                wanted = in_environment[name] = TenantSettings()
                if known := self._registry.known(name):
                    wanted.CopyFrom(known.settings)
                wanted.open_to = openness
        await self._ensure("TRUNKLINE_TENANTS", in_environment)
        await self._ensure("TRUNKLINE_TENANTS_FILE", in_file)

    async def refresh(self) -> None:
        """Do what a changed file says; one that is not valid changes nothing, and is logged."""
        if self._file is None or not self._file.changed():
            return
        try:
            await self._ensure("TRUNKLINE_TENANTS_FILE", self._file.load())
        except StartError as error:
            _log.error("the tenants file is not valid; what it said before stays", problem=str(error))
        else:
            _log.info("the tenants file was read again")

    async def _ensure(self, source: str, tenants: Mapping[str, TenantSettings]) -> None:
        try:
            for name, settings in tenants.items():
                check(CreateTenantRequest(tenant=name, settings=settings), f"tenant {name}")
            await self._registry.ensure(tenants)
        except Refused as reason:
            raise StartError(f"{source}: {reason}") from None
