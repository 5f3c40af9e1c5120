"""Detection of this machine: loopback addresses, host names and callers."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

#: `host[:port]` of a Host header or an origin: no user, no path, no percent-encoding.
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z.-]+)(?::[0-9]{0,5})?")


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


def plain_ip(address: str) -> str:
    """An IPv4 address that a listener for both versions reports as `::ffff:a.b.c.d`, without that prefix."""
    inner = address.removeprefix("::ffff:")
    return inner if "." in inner else address


def is_loopback_host(host: str) -> bool:
    """True for `localhost` and for loopback addresses."""
    return host == "localhost" or is_loopback(host)


@lru_cache(maxsize=1024)
def is_local_authority(authority: str) -> bool:
    """True if `host[:port]` can only mean the machine of whoever resolves it.

    That is `localhost`, a name below it, or a loopback address. Any other name may resolve to loopback as
    its owner likes (DNS rebinding).
    """
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        return False
    host = match[1].lower().removesuffix(".")
    return is_loopback_host(host.strip("[]")) or host.endswith(".localhost")


def is_local_caller(remote_ip: str, *, is_forwarded: bool) -> bool:
    """True for a caller on this machine. A proxy's own address says nothing about its caller's."""
    return not is_forwarded and is_loopback(remote_ip)
