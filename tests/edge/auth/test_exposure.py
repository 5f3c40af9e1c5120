"""The warning of tenants that are open to this machine on an edge that others reach."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs
from trunkline.v1.tenant_pb2 import OPENNESS_ANYBODY, OPENNESS_NOBODY
from trunkline_edge.auth.exposure import ExposureWarning
from trunkline_edge.dialects.tenant_policies import TenantPolicies

from tests.support.declared_tenants import policy

TENANTS = TenantPolicies(
    [policy("here"), policy("closed", open_to=OPENNESS_NOBODY), policy("all", open_to=OPENNESS_ANYBODY)]
)


def warnings(listen: str, tenants: TenantPolicies) -> list[list[str]]:
    """The tenants that each warning names, after two links."""
    exposure = ExposureWarning(listen)
    with capture_logs() as lines:
        exposure.policies_told(tenants)
        exposure.policies_told(tenants)
    return [line["tenants"] for line in lines]


@pytest.mark.parametrize("listen", ["0.0.0.0:8080", "[::]:8080", ":8080", "192.0.2.1:8080"])
def test_an_edge_that_others_reach_warns_once(listen: str) -> None:
    assert warnings(listen, TENANTS) == [["here"]]
    assert warnings(listen, TenantPolicies([policy("closed", open_to=OPENNESS_NOBODY)])) == []


@pytest.mark.parametrize("listen", ["127.0.0.1:8080", "localhost:0", "[::1]:8080", "unix:/run/edge.sock"])
def test_an_edge_on_loopback_does_not(listen: str) -> None:
    assert warnings(listen, TENANTS) == []
