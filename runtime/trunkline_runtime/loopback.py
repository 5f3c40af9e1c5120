"""Detection of this machine: loopback addresses, host names and callers."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, ip_address


@lru_cache(maxsize=1024)
def is_loopback(address: str) -> bool:
    """True for an IP address in the loopback range; false for everything else, names included."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped.is_loopback
    return parsed.is_loopback


def is_loopback_host(host: str) -> bool:
    """True for `localhost` and for loopback addresses."""
    return host == "localhost" or is_loopback(host)


def is_local_caller(remote_ip: str, *, is_forwarded: bool) -> bool:
    """True for a caller on this machine. A proxy's own address says nothing about its caller's."""
    return not is_forwarded and is_loopback(remote_ip)
