"""Addresses of routers that share one log: one of them owns it, the others are standbys."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Annotated

from pydantic import AfterValidator

from trunkline_runtime.listen_address import check_target

#: Most routers in one setting; more are refused.
MAX_ROUTERS = 16


class RouterAddresses:
    """Routers in the order of the setting, and the one to call first. Pure."""

    def __init__(self, text: str) -> None:
        """Parse `host:port,host:port`. Raises ValueError with a text for the person who set it."""
        self._addresses = _parse(text)
        #: The last one that accepted this process; at first the first one.
        self.in_use = self._addresses[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._addresses)

    def __len__(self) -> int:
        return len(self._addresses)

    def __str__(self) -> str:
        return ",".join(self._addresses)

    def after(self, address: str) -> str:
        """The next address; the first one after the last."""
        return self._addresses[(self._addresses.index(address) + 1) % len(self._addresses)]

    def in_order(self) -> list[str]:
        """All addresses, from the one in use."""
        start = self._addresses.index(self.in_use)
        return self._addresses[start:] + self._addresses[:start]


def _parse(text: str) -> list[str]:
    addresses = [entry.strip() for entry in text.split(",")]
    if len(addresses) > MAX_ROUTERS:
        raise ValueError(f"may name at most {MAX_ROUTERS} routers; it names {len(addresses)}")
    if any(each in address for address in addresses for each in " \t\n;"):
        raise ValueError(f"must have commas between addresses; it is {text!r}")
    if len(addresses) == 1:
        return [check_target(addresses[0])]
    seen: dict[str, str] = {}
    for address in addresses:
        if not address:
            raise ValueError(f"has an empty address: write host:port,host:port; it is {text!r}")
        try:
            check_target(address)
        except ValueError as problem:
            raise ValueError(f"{address!r} {problem}") from None
        first = seen.setdefault(_comparable(address), address)
        if first is not address:
            raise ValueError(f"names a router twice: {first} and {address}")
    return addresses


def _comparable(address: str) -> str:
    """One form for the addresses that mean the same."""
    host, _, port = address.lower().rpartition(":")
    try:
        return f"{ip_address(host.strip('[]'))} {int(port)}"
    except ValueError:
        return address.lower()


def _checked(text: str) -> str:
    return str(RouterAddresses(text))


#: A setting: addresses of routers, separated by commas.
Routers = Annotated[str, AfterValidator(_checked)]
