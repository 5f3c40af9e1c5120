"""Finds the tenant of a pipeline, which LangBot's clients do not name."""

from __future__ import annotations

from collections.abc import Mapping

from trunkline.v1 import catalogue

from trunkline_edge.dialects.tenant_policies import TenantPolicies

#: The dialect's name.
NAME = "langbot"


def owner_in_path(parameters: Mapping[str, str], tenants: TenantPolicies) -> str:
    """The tenant that reserved the pipeline in a path; empty for none."""
    return tenants.owner_of(NAME, parameters["pipeline"])


def tenant_of(tenants: TenantPolicies, pipeline: str, token: str) -> str:
    """The tenant that reserved the pipeline, else the token's tenant; there is no default.

    Does not authenticate the client. Raises Refused UNAUTHORIZED if the token is another tenant's, or is
    missing and would identify the tenant; UNKNOWN_TENANT if no tenant has the pipeline and none shares a
    secret.
    """
    owner, bearer_tenant = tenants.owner_of(NAME, pipeline), tenants.tenant_of_token(token)
    if owner and bearer_tenant not in ("", owner):
        raise catalogue.UNAUTHORIZED.refused(problem="the token is another tenant's")
    tenant = owner or bearer_tenant
    if tenant:
        return tenant
    if tenants.have_shared_tokens:
        raise catalogue.UNAUTHORIZED.refused(
            problem="no tenant has reserved the pipeline, and there is no token"
        )
    raise catalogue.UNKNOWN_TENANT.refused(tenant="for this pipeline")
