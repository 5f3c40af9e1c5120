"""Each unary RPC has at least one HTTP form, no two share one, and each names its tenant in the path."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest
from google.api.annotations_pb2 import http
from google.protobuf.descriptor import MethodDescriptor
from trunkline.v1.access_pb2 import RIGHT_UNSPECIFIED, SCOPE_OPERATOR, Right, Scope
from trunkline_edge.http.bindings import Binding, bindings, bindings_of, services
from trunkline_edge.http.openapi import document
from trunkline_edge.http.openapi_schemas import limits, name_of
from trunkline_edge.http.path_router import PathRouter

METHODS = [method for service in services() for method in service.methods]
UNARY = [method for method in METHODS if not method.client_streaming and not method.server_streaming]


def test_every_service_is_walked() -> None:
    assert {
        "AgentService",
        "BroadcastService",
        "EdgeService",
        "HistoryService",
        "PresenceService",
        "TenantService",
    } <= {service.name for service in services()}


@pytest.mark.parametrize("method", UNARY, ids=lambda method: method.name)
def test_each_unary_rpc_has_an_annotation_and_a_route(method: MethodDescriptor) -> None:
    forms = bindings_of(method)
    assert forms
    for form in forms:
        assert form.template.startswith("/v1/")
        # Access is checked before a body is read.
        assert form.tenant_at is not None or form.scope == SCOPE_OPERATOR
        assert form.tenant_at is None or form.variables[form.tenant_at][-1].name == "tenant"
        # A body carries everything that is not in the path; RPCs that a query cannot express need one.
        assert form.whole_body == (form.http_method not in ("GET", "DELETE"))


def test_rpcs_that_stream_from_the_caller_have_no_http_form() -> None:
    for method in METHODS:
        if method.client_streaming:
            assert not method.GetOptions().HasExtension(http)


def test_no_two_routes_clash() -> None:
    table: PathRouter[str] = PathRouter()
    shapes: dict[tuple[str | None, ...], set[str]] = {}
    for binding in bindings():
        table.add(binding.http_method, binding.pattern, str(binding))
        segments = binding.pattern.segments
        for at, segment in enumerate(segments):
            shapes.setdefault((*segments[:at], "…"), set()).add("{}" if segment is None else segment)
    # A literal beside a variable would make one value of the variable unreachable.
    for shape, beside in shapes.items():
        assert "{}" not in beside or beside == {"{}"}, shape


def test_the_document_describes_all_of_them_and_their_limits() -> None:
    found = document(bindings())
    operations = [operation for path in found["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]
    # The specification wants them unique, and generators make functions of them.
    assert len(set(names)) == len(names) == len(bindings())
    assert {name.removesuffix("OfAllTenants") for name in names} == {each.method.name for each in bindings()}
    assert all(operation["summary"] and operation["description"] for operation in operations)
    for name, schema in found["components"]["schemas"].items():
        assert schema.get("description"), name
        for field, inner in schema.get("properties", {}).items():
            assert name == "Status" or "description" in inner, f"{name}.{field}"


def test_each_limit_is_a_keyword_of_the_schema() -> None:
    """Except those of whole messages and of depth, which JSON Schema cannot express."""
    schemas = document(bindings())["components"]["schemas"]
    says = {"type", "$ref", "description", "contentEncoding", "items", "format"}
    for message in {binding.method.input_type for binding in bindings()}:
        body = schemas.get(f"{message.name.removesuffix('Request')}Body", {})
        for field in message.fields:
            stated, schema = limits(field), body.get("properties", {}).get(field.json_name)
            # A reference to an enum's schema has the values there.
            if not stated or stated == "required" or schema is None or field.enum_type is not None:
                continue
            assert schema.keys() - says, f"{name_of(field)}: {stated}"


def test_the_document_has_the_essential_parts() -> None:
    found = document(bindings())
    messages = found["paths"]["/v1/tenants/{tenant}/messages"]
    assert messages["post"]["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/BroadcastBody"
    }
    schemas = found["components"]["schemas"]
    assert schemas["BroadcastBody"]["required"] == ["parts"]
    assert schemas["BroadcastBody"]["properties"]["parts"]["maxItems"] == 64
    assert schemas["Part"]["maxProperties"] == 1
    assert "tenant" not in schemas["AddressWithoutTenant"]["properties"]
    assert schemas["EndMessageBody"]["properties"]["state"]["enum"][0] == "MESSAGE_STATE_COMPLETE"
    parameters = {each["name"]: each for each in messages["get"]["parameters"]}
    assert parameters["tenant"] | {"description": "", "schema": {}} == {
        "name": "tenant", "in": "path", "required": True, "description": "", "schema": {}
    }  # fmt: skip
    assert parameters["limit"]["schema"]["maximum"] == 500
    assert parameters["address.conversation.kind"]["schema"]["enum"] == [
        "CONVERSATION_KIND_PERSON",
        "CONVERSATION_KIND_GROUP",
    ]
    watch = found["paths"]["/v1/tenants/{tenant}/connections:watch"]["get"]
    assert list(watch["responses"]["200"]["content"]) == ["text/event-stream"]


def test_the_document_describes_the_short_name_of_each_enum_value() -> None:
    found = document(bindings())["components"]["schemas"]
    for name, prefix, schema in (
        ("Scope", "SCOPE_", found["Scope"]),
        ("Openness", "OPENNESS_", found["Openness"]),
        ("Conversation.kind", "CONVERSATION_KIND_", found["Conversation"]["properties"]["kind"]),
        ("EndMessage.state", "MESSAGE_STATE_", found["EndMessageBody"]["properties"]["state"]),
    ):
        values = [each for each in schema["enum"] if not each.endswith("_UNSPECIFIED")]
        assert values, name
        for value in values:
            short = value.removeprefix(prefix).lower()
            assert f"- `{value}`, in requests also `{short}`: " in schema["description"], name


@pytest.mark.parametrize("suffix", ["", "_client", "_api", "_sdk"])
def test_a_package_named_after_the_title_of_the_document_is_none_of_ours(suffix: str) -> None:
    """openapi-python-client adds `_client` to the title; others add nothing, or name the kind of package."""
    title: str = document(bindings())["info"]["title"]
    package = re.sub(r"\W+", "_", title).lower() + suffix
    assert find_spec("trunkline_client") is not None
    assert find_spec(package) is None


def test_the_document_states_the_scope_of_each_call() -> None:
    found = document(bindings())
    assert found["components"]["securitySchemes"]["key"] | {"description": ""} == {
        "type": "http", "scheme": "bearer", "description": ""
    }  # fmt: skip
    assert found["security"] == [{"key": []}, {}]
    assert found["paths"]["/v1/tenants"]["post"]["security"] == [{"key": []}]
    assert "security" not in found["paths"]["/v1/tenants/{tenant}/stats"]["get"]
    assert found["components"]["securitySchemes"]["token"]["bearerFormat"] == "JWT"
    secured = {
        operation["operationId"]
        for path in found["paths"].values()
        for operation in path.values()
        if {"token": []} in operation.get("security", [])
    }
    assert secured == {each.method.name for each in bindings() if each.client_right != RIGHT_UNSPECIFIED}
    takes = {
        (operation["operationId"].removesuffix("OfAllTenants"), operation["description"].rpartition("\n")[2])
        for path in found["paths"].values()
        for operation in path.values()
    }
    assert takes == {
        (binding.method.name, f"Requires `{Scope.Name(binding.scope)}`{or_right(binding)}.")  # type: ignore[arg-type]
        for binding in bindings()
    }


def or_right(binding: Binding) -> str:
    """The alternative of clients, if they may make the call."""
    if binding.client_right == RIGHT_UNSPECIFIED:
        return ""
    name = Right.Name(binding.client_right).removeprefix("RIGHT_").lower()  # type: ignore[arg-type]
    return f", or a client's token with the right `{name}`"
