"""Each RPC of the contract states its scope, and its rule finds the tenant that a request names."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import MethodDescriptor
from trunkline.v1.access_pb2 import (
    RIGHT_UNSPECIFIED,
    SCOPE_ADMIN,
    SCOPE_BROADCAST,
    SCOPE_HISTORY,
    SCOPE_LINK,
    SCOPE_OPERATOR,
    audited,
    client_right,
    requires,
    requires_for_all,
)
from trunkline.v1.agent_service_pb2 import AttachRequest
from trunkline.v1.broadcast_service_pb2 import BroadcastManyRequest
from trunkline_edge.http.bindings import bindings_of, services
from trunkline_router.app import HEALTH
from trunkline_router.rpc.method_rules import DENY, rule_of
from trunkline_router.rpc.reflection import SERVICES as REFLECTION
from trunkline_router.rpc.services import SERVICES

METHODS = {f"{service.name}.{method.name}": method for service in services() for method in service.methods}
#: RPCs whose requests name no tenant.
FOR_NONE = {"TenantService.ListTenants", "EdgeService.Link"}


def test_every_service_of_the_contract_is_served_and_guarded() -> None:
    assert set(SERVICES) == {service.full_name for service in services()}
    # Public services are not among them.
    assert not set(SERVICES) & {HEALTH, *REFLECTION}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_each_rpc_has_a_rule(method: MethodDescriptor) -> None:
    rule = rule_of(method)
    assert rule is not DENY, "it needs the option (requires), and a request that names a tenant"
    assert rule.scope == method.GetOptions().Extensions[requires]
    named = f"{method.containing_service.name}.{method.name}"
    assert bool(rule.tenant_field) == (named not in FOR_NONE)
    # Only callers without a tenant of their own may name none.
    assert rule.tenant_field or rule.scope in (SCOPE_OPERATOR, SCOPE_LINK)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_each_rpc_that_clients_may_call_has_an_http_form_for_one_tenant(method: MethodDescriptor) -> None:
    right = method.GetOptions().Extensions[client_right]
    assert rule_of(method).client_right == right
    if right == RIGHT_UNSPECIFIED:
        return
    assert not method.client_streaming
    assert not method.server_streaming
    assert rule_of(method).scope in (SCOPE_BROADCAST, SCOPE_HISTORY)
    forms = bindings_of(method)
    assert forms, "clients call over HTTP"
    assert all(form.tenant_at is not None for form in forms), "the edge verifies a token for one tenant"


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_rule_finds_the_tenant_that_a_request_names(method: MethodDescriptor) -> None:
    rule = rule_of(method)
    if not rule.tenant_field or method.client_streaming:
        return
    request = method.input_type._concrete_class()
    inside = request
    *outer, last = rule.tenant_field.split(".")
    for name in outer:
        inside = getattr(inside, name)
    setattr(inside, last, "acme")
    assert list(rule.tenant_names(request)) == ["acme"]
    assert list(rule.tenant_names(method.input_type._concrete_class())) == [""]


def test_a_rule_finds_the_tenants_that_messages_of_a_stream_name() -> None:
    attach = rule_of(METHODS["AgentService.Attach"])
    hello = AttachRequest()
    assert list(attach.tenant_names(hello)) == []
    hello.hello.tenant = "acme"
    assert list(attach.tenant_names(hello)) == ["acme"]
    many = rule_of(METHODS["BroadcastService.BroadcastMany"])
    batch = BroadcastManyRequest()
    for tenant in ("acme", "other", "acme", ""):
        batch.requests.add().request.address.tenant = tenant
    assert set(many.tenant_names(batch)) == {"acme", "other", ""}


def test_a_tenants_admin_cannot_declare_tenants() -> None:
    for named, method in METHODS.items():
        changes = named.startswith("TenantService.") and named.endswith("Tenant")
        if changes and not named.endswith("GetTenant"):
            assert rule_of(method).scope == SCOPE_OPERATOR > SCOPE_ADMIN


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_each_administrative_rpc_that_changes_something_is_audited(method: MethodDescriptor) -> None:
    is_audited = method.GetOptions().Extensions[audited]
    is_reading = all(form.http_method == "GET" for form in bindings_of(method))
    if method.GetOptions().Extensions[requires] in (SCOPE_ADMIN, SCOPE_OPERATOR):
        assert is_audited == (not is_reading), (
            "set the option (audited) for what changes something, and only that"
        )
    assert rule_of(method).is_audited == is_audited
    assert not (is_audited and (method.client_streaming or method.server_streaming)), "only unary calls are"


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_only_the_operator_may_call_for_all_tenants(method: MethodDescriptor) -> None:
    for_all = method.GetOptions().Extensions[requires_for_all]
    assert rule_of(method).scope_for_all == for_all
    assert for_all in (0, SCOPE_OPERATOR)
    for form in bindings_of(method) if for_all else ():
        assert form.scope == (for_all if form.tenant_at is None else method.GetOptions().Extensions[requires])
