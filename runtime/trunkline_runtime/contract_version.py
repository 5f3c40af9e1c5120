"""Compatibility of two processes by the contract's minor version."""

from __future__ import annotations

from trunkline.v1 import catalogue

#: Peers work together when their minor versions differ by at most this much.
MAX_MINOR_DISTANCE = 1


def check_peer_version(contract_minor: int) -> None:
    """Raises Refused INCOMPATIBLE_VERSION unless a peer's contract works with this process's."""
    ours = catalogue.CONTRACT_MINOR
    if abs(contract_minor - ours) > MAX_MINOR_DISTANCE:
        raise catalogue.INCOMPATIBLE_VERSION.refused(theirs=contract_minor, ours=ours)
