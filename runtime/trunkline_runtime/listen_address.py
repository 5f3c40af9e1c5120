"""Addresses of processes: `host:port`, `[ipv6]:port`, `:port` for all interfaces, `unix:/path`."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from typing import Annotated, NamedTuple

from pydantic import AfterValidator

MAX_PORT = 65_535
#: Of a socket's path; the kernel's bound is 108 with the final zero on Linux, 104 on macOS.
MAX_PATH_BYTES = 103

_UNIX = "unix:"
_SCHEMES = (_UNIX, "dns:", "ipv4:", "ipv6:")
_NAME = re.compile(r"(?!-)[A-Za-z0-9._-]{1,253}")
_ALL_INTERFACES = ("", "0.0.0.0", "::")


class ListenAddress(NamedTuple):
    """A parsed address. `str` writes it as in a URL."""

    #: Without brackets; empty for all interfaces, and for a Unix socket.
    host: str
    port: int
    #: The path of a Unix socket; empty for TCP.
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> ListenAddress:
        """Parse an address. Raises ValueError with a text for the person who set it."""
        if text.startswith(_UNIX):
            return cls("", 0, _checked_path(text.removeprefix(_UNIX)))
        host, colon, port = text.rpartition(":")
        if not colon or host.endswith(":") or (host.startswith("[") and port.endswith("]")):
            raise ValueError(f"must be host:port, [ipv6]:port or unix:/path; it is {text!r}")
        if not (port.isascii() and port.isdecimal() and int(port) <= MAX_PORT):
            raise ValueError(f"the port must be a number from 0 to {MAX_PORT}; it is {port!r}")
        return cls(_checked_host(host), int(port))

    def __str__(self) -> str:
        if self.path:
            return f"{_UNIX}{self.path}"
        return f"{_bracketed(self.host)}:{self.port}"

    @property
    def is_public(self) -> bool:
        """All interfaces of the machine, not one address."""
        return not self.path and self.host in _ALL_INTERFACES

    @property
    def reachable(self) -> str:
        """The address for a client on this machine, as in a URL: nobody can connect to all interfaces."""
        if not self.is_public:
            return str(self)
        return f"[::1]:{self.port}" if self.host == "::" else f"127.0.0.1:{self.port}"


def _checked_host(host: str) -> str:
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        is_ipv6 = isinstance(ip_address(bare), IPv6Address)
    except ValueError:
        if bare != host or ":" in host:
            raise ValueError(f"{host!r} is no IPv6 address in brackets, such as [::1]") from None
        if host and not _NAME.fullmatch(host):
            raise ValueError(f"{host!r} is neither an IP address nor a host name") from None
        return host
    if is_ipv6 != (bare != host):
        raise ValueError(f"write {'brackets around the IPv6 address' if is_ipv6 else bare}: {host!r}")
    return bare


def _checked_path(path: str) -> str:
    # `unix:///path` is the form of URLs and of gRPC.
    path = path.removeprefix("//") if path.startswith("///") else path
    if not path or "\0" in path or path.endswith("/"):
        raise ValueError("names no file: write unix:/path")
    if len(path.encode()) > MAX_PATH_BYTES:
        raise ValueError(f"the path of a socket may have at most {MAX_PATH_BYTES} bytes")
    return path


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _checked(text: str) -> str:
    return str(ListenAddress.parse(text))


def _checked_tcp(text: str) -> str:
    address = ListenAddress.parse(text)
    if address.path:
        raise ValueError("must be host:port or [ipv6]:port; Unix sockets are for an edge's clients")
    return str(address)


def _checked_or_empty(text: str) -> str:
    return _checked_tcp(text) if text else ""


def check_target(text: str) -> str:
    """Check an address to connect to, and return it. Raises ValueError.

    gRPC parses the forms that name a resolver itself.
    """
    if text.startswith(_SCHEMES):
        return text
    address = ListenAddress.parse(text)
    if not (address.host and address.port):
        raise ValueError(f"must be the host:port or [ipv6]:port of a router; it is {text!r}")
    return text


#: Settings: a TCP address or Unix socket; a TCP address; the same, or empty for none.
Listener = Annotated[str, AfterValidator(_checked)]
TcpListener = Annotated[str, AfterValidator(_checked_tcp)]
OptionalTcpListener = Annotated[str, AfterValidator(_checked_or_empty)]
