"""Decisions from tenants' settings, and compatibility of versions."""

from __future__ import annotations

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import SCOPE_ADMIN, SCOPE_BROADCAST
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import OPENNESS_ANYBODY, OPENNESS_LOOPBACK, OPENNESS_NOBODY, TenantSettings
from trunkline_runtime.contract_version import check_peer_version
from trunkline_runtime.reserved_names import reserved_names
from trunkline_runtime.tenant_policy import check_open_to_call

LOCAL, REMOTE = True, False


@pytest.mark.parametrize(
    ("openness", "scope", "is_local"),
    [
        (OPENNESS_LOOPBACK, SCOPE_BROADCAST, LOCAL),
        (OPENNESS_ANYBODY, SCOPE_BROADCAST, REMOTE),
    ],
)
def test_an_open_tenant_needs_no_credentials(openness: int, scope: int, is_local: bool) -> None:
    check_open_to_call("t", openness, scope, is_local)


@pytest.mark.parametrize(
    ("openness", "scope", "is_local", "text"),
    [
        (OPENNESS_NOBODY, SCOPE_BROADCAST, LOCAL, "an API key with SCOPE_BROADCAST must be given"),
        (OPENNESS_LOOPBACK, SCOPE_BROADCAST, REMOTE, "tenant t is open to this machine only"),
        (OPENNESS_LOOPBACK, SCOPE_ADMIN, LOCAL, "an API key with SCOPE_ADMIN must be given"),
        (OPENNESS_ANYBODY, SCOPE_ADMIN, LOCAL, "an API key with SCOPE_ADMIN must be given"),
    ],
)
def test_a_closed_tenant_names_the_missing_credentials(
    openness: int, scope: int, is_local: bool, text: str
) -> None:
    with pytest.raises(Refused, match=text) as refused:
        check_open_to_call("t", openness, scope, is_local)
    assert refused.value.entry == catalogue.UNAUTHORIZED


def test_peers_one_minor_version_apart_work_together() -> None:
    for distance in (-1, 0, 1):
        check_peer_version(catalogue.CONTRACT_MINOR + distance)
    for distance in (-2, 2):
        with pytest.raises(Refused) as refused:
            check_peer_version(catalogue.CONTRACT_MINOR + distance)
        assert refused.value.entry == catalogue.INCOMPATIBLE_VERSION


def test_reserved_names_belong_to_the_dialect_of_their_field() -> None:
    names = list(reserved_names(TenantSettings(pipelines=["p1", "p2"])))
    assert names == [("langbot", "p1"), ("langbot", "p2")]
    assert {name.field for name in names} == {"pipelines"}
