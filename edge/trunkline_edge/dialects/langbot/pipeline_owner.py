"""Finds the tenant of a pipeline, which LangBot's clients do not name."""

from __future__ import annotations

from trunkline.v1 import catalogue

from trunkline_edge.dialects.dialect import HttpRequest
from trunkline_edge.dialects.tenant_policies import TenantPolicies

#: The dialect's name.
NAME = "langbot"

#: Dialect of the names that reserve workspaces.
WORKSPACES = "langbot.workspace"

#: Header in which LangBot's web client names its workspace.
WORKSPACE_HEADER = "x-workspace-id"


def tenant_of_request(request: HttpRequest) -> str:
    """The tenant of a request for a pipeline; empty if `tenant_of` raises."""
    workspace = request.headers.get(WORKSPACE_HEADER, "")
    owner = request.tenants.owner_of(NAME, request.parameters.get("pipeline", ""))
    return owner or tenant_of_caller(request.tenants, request.key, workspace)


def tenant_of_caller(tenants: TenantPolicies, token: str, workspace: str) -> str:
    """The tenant whose secret or audience a token has, else that of the workspace; empty for none."""
    return (
        tenants.tenant_of_token(token)
        or tenants.tenant_of_audience(token)
        or tenants.owner_of(WORKSPACES, workspace)
    )


def tenant_of(tenants: TenantPolicies, pipeline: str, token: str, workspace: str = "") -> str:
    """The tenant that reserved the pipeline, else the token's tenant, else that of the workspace.

    There is no default. Does not authenticate the client. Raises Refused UNAUTHORIZED if the token is another
    tenant's, or is missing and would identify the tenant; UNKNOWN_TENANT if no tenant has the pipeline and
    none can be identified otherwise.
    """
    owner, bearer_tenant = tenants.owner_of(NAME, pipeline), tenants.tenant_of_token(token)
    if owner and bearer_tenant not in ("", owner):
        raise catalogue.UNAUTHORIZED.refused(problem="the token is another tenant's")
    tenant = owner or tenant_of_caller(tenants, token, workspace)
    if tenant:
        return tenant
    if tenants.are_known_by(WORKSPACES):
        raise catalogue.UNAUTHORIZED.refused(
            problem="no tenant has reserved the pipeline, and no token or workspace names one"
        )
    raise catalogue.UNKNOWN_TENANT.refused(tenant="for this pipeline")
