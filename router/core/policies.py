"""Who may come in."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from trunkline.v1 import catalogue


@dataclass(frozen=True, slots=True)
class Policies:
    """What the operator has declared."""

    tenants: tuple[str, ...]
    #: Clients may connect from anywhere; otherwise from this machine only.
    open_to_any: bool = False
    #: Groups that one connection may have joined at a time.
    max_conversations: int = 100

    def admit(self, tenant: str, remote_ip: str) -> None:
        """Raises Refused where a client of this tenant may not connect from there."""
        if tenant not in self.tenants:
            raise catalogue.UNKNOWN_TENANT.refused(tenant=tenant)
        if not self.open_to_any and not _is_loopback(remote_ip):
            problem = f"tenant {tenant} is open to clients on this machine only"
            raise catalogue.UNAUTHORIZED.refused(problem=problem)


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
