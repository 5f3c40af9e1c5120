"""Warns of tenants that are open to this machine on an edge that other machines reach."""

from __future__ import annotations

import structlog
from trunkline_runtime.listen_address import ListenAddress
from trunkline_runtime.loopback import is_loopback_host

from trunkline_edge.dialects.tenant_policies import TenantPolicies

_log = structlog.get_logger()

#: Names that the warning lists.
MAX_LISTED = 5


class ExposureWarning:
    """Logs one line when the policies are known, if the edge listens beyond loopback.

    A proxy on this machine that adds no header to what it forwards passes for a local caller, and nothing
    tells it apart. An edge that other machines reach likely has one, now or later.
    """

    def __init__(self, listen: str) -> None:
        address = ListenAddress.parse(listen)
        # No caller on a Unix socket counts as local.
        self._is_due = not address.path and not is_loopback_host(address.host)

    def policies_told(self, tenants: TenantPolicies) -> None:
        """Log the warning unless it was logged, or nothing is exposed."""
        names = tenants.open_to_loopback() if self._is_due else []
        if names:
            self._is_due = False
            _log.warning(
                "tenants are open to this machine, and this edge listens to others: a proxy here that hides"
                " its clients would open these tenants to the network; see docs/security.md",
                tenants=names[:MAX_LISTED],
                number=len(names),
            )
