"""Whose a pipeline is, as LangBot's clients do not say it."""

from __future__ import annotations

from trunkline.v1 import catalogue

from trunkline_edge.dialects.tenant_policies import TenantPolicies

#: The dialect's name.
NAME = "langbot"


def tenant_of(tenants: TenantPolicies, pipeline: str, token: str) -> str:
    """The tenant that the pipeline was declared for, else the token's; there is no default.

    Whether the token lets anybody in is not looked at. Raises Refused: UNAUTHORIZED where the token is
    another tenant's, or one is needed to tell the tenant, and UNKNOWN_TENANT where the pipeline is nobody's
    and no token could make it somebody's.
    """
    declared, owner = tenants.owner_of(NAME, pipeline), tenants.tenant_of_token(token)
    if declared and owner not in ("", declared):
        raise catalogue.UNAUTHORIZED.refused(problem="the token is another tenant's")
    tenant = declared or owner
    if tenant:
        return tenant
    if tenants.have_shared_tokens:
        raise catalogue.UNAUTHORIZED.refused(problem="the pipeline is not declared, and there is no token")
    raise catalogue.UNKNOWN_TENANT.refused(tenant="for this pipeline")
