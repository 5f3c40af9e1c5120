"""The source of an HTTP request, as far as its connection and its headers tell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trunkline_runtime.call_metadata import is_proxied
from trunkline_runtime.loopback import is_local_authority, is_loopback, plain_ip


@dataclass(frozen=True, slots=True)
class RequestSource:
    """The machine and the web page that a request came from."""

    #: The peer's IP address; empty if it has none.
    remote_ip: str = ""
    #: A proxy forwarded the request, so `remote_ip` is not the caller's.
    is_proxied: bool = False
    #: The request addresses this machine by a name or address that can mean no other; see
    #: `is_local_authority`. A page that rebinds its own name to loopback does not.
    has_local_host: bool = False
    #: The `Origin` of a web page; empty if the request states none.
    origin: str = ""
    #: A browser says that a page of another site caused the request.
    is_cross_site: bool = False

    @classmethod
    def read(
        cls, remote_ip: str, headers: Iterable[tuple[str, str]], http_version: str = "1.1"
    ) -> RequestSource:
        """Read the headers, given by lower-case name.

        HTTP/1.0 counts as forwarded: nginx speaks it to its upstreams by default, and browsers do not.
        """
        hosts: list[str] = []
        origins: list[str] = []
        is_cross_site = False
        names = []
        for name, value in headers:
            names.append(name)
            if name == "host":
                hosts.append(value.strip())
            elif name == "origin":
                origins.append(value.strip())
            elif name == "sec-fetch-site":
                is_cross_site |= value.strip().lower() == "cross-site"
        return cls(
            plain_ip(remote_ip),
            is_proxied=http_version == "1.0" or is_proxied(names),
            has_local_host=len(hosts) == 1 and is_local_authority(hosts[0]),
            # Several are no origin that anything allows.
            origin=", ".join(origins),
            is_cross_site=is_cross_site,
        )

    @property
    def is_local(self) -> bool:
        """The caller is on the edge's own machine, and asks for it by a local name."""
        return not self.is_proxied and self.has_local_host and is_loopback(self.remote_ip)

    @property
    def is_unlike_its_address(self) -> bool:
        """The peer's address is loopback, but the caller is not local."""
        return self.is_proxied or (is_loopback(self.remote_ip) and not self.has_local_host)

    @property
    def is_foreign_page(self) -> bool:
        """A web page caused the request that this machine did not serve."""
        return not is_local_origin(self.origin) if self.origin else self.is_cross_site


def is_local_origin(origin: str) -> bool:
    """True for the origin of a page that this machine served, at any port."""
    scheme, separator, authority = origin.partition("://")
    return bool(separator) and scheme in ("http", "https") and is_local_authority(authority)
