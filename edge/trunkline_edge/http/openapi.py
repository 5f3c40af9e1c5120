"""/openapi.json: the HTTP API described for tools, from the contract's descriptors and comments."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import msgspec
from google.protobuf.descriptor import Descriptor
from starlette.requests import Request
from starlette.responses import Response
from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import RIGHT_UNSPECIFIED, SCOPE_OPERATOR, Scope, requires_for_all
from trunkline.v1.frames import RIGHTS

from trunkline_edge.http.bindings import Binding, FieldPath
from trunkline_edge.http.json_decode import is_map
from trunkline_edge.http.openapi_schemas import SCHEMAS, SchemaRegistry, comment, nested_messages

#: Errors of any call, and of calls with a body, by HTTP status.
ERRORS = {
    400: "The request is incomplete or invalid.",
    401: "The credentials are missing or invalid.",
    403: "The caller is not permitted to do this.",
    404: "The tenant, message or path does not exist.",
    429: "A rate limit or quota is exceeded, or the service is overloaded.",
    500: "Internal error.",
    501: "The router is older than this edge.",
    503: "The service is starting or restarting.",
    504: "The router did not answer in time; it may have done the request or not.",
}
BODY_ERRORS = {
    408: "The body did not arrive in time.",
    409: "The request conflicts with the current state.",
    413: "The body, or the resulting message, is too large.",
    415: "The body is not JSON in UTF-8.",
}

#: Generators name their package after it: `trunkline_http_api_client`, `trunkline_http_api`. A title of
#: "Trunkline" gives names of our own packages.
TITLE = "Trunkline HTTP API"

DESCRIPTION = """\
Every unary RPC of the gRPC contract `trunkline.v1`, as canonical protobuf JSON. 64-bit integers are \
strings. In requests optional fields may be null, numbers may be strings, enum values may be numbers or \
short names (`person` for `CONVERSATION_KIND_PERSON`), and field names may be snake_case; responses never \
use these forms. Unknown parameters and fields are rejected. Responses may gain new fields.

An error is a `google.rpc.Status`; the catalogue's code is the `reason` of its `google.rpc.ErrorInfo`."""

STATUS: dict[str, Any] = {
    "type": "object",
    "description": "A `google.rpc.Status`.",
    "properties": {
        "code": {"type": "integer", "format": "int32", "description": "The `google.rpc.Code`."},
        "message": {"type": "string", "description": "For people."},
        "details": {
            "type": "array",
            "description": "For programs: a `google.rpc.ErrorInfo`, and a `google.rpc.RetryInfo` if the "
            "same request may succeed later.",
            "items": {
                "type": "object",
                "properties": {
                    "@type": {"type": "string"},
                    "reason": {"type": "string", "description": "The catalogue's code."},
                    "domain": {"type": "string"},
                    "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
                    "retryDelay": {"type": "string"},
                },
                "required": ["@type"],
            },
        },
    },
    "required": ["code", "message", "details"],
}
SECURITY: dict[str, Any] = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key of the tenant, or the operator's key. Optional if the tenant is open to "
        "the caller. `X-API-Key` may replace `Authorization`.",
    },
    "token": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A client's token, signed by a key of the tenant. It allows what a connection with "
        "the same token could do.",
    },
}
JSON = "application/json"
_RIGHT_NAMES = {right: name for name, right in RIGHTS.items()}
Endpoint = Callable[[Request], Awaitable[Response]]


def endpoint(known: Sequence[Binding], path_prefix: str) -> Endpoint:
    """An endpoint that serves the document, which is generated once."""
    content = msgspec.json.encode(document(known, path_prefix))
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"etag": etag, "cache-control": "no-cache"}

    async def openapi(request: Request) -> Response:
        """Return the document, or 304 if the caller has it."""
        if etag in re.findall(r'"[^"]*"', request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=headers)
        return Response(content, 200, headers, JSON)

    return openapi


def document(known: Sequence[Binding], path_prefix: str = "") -> dict[str, Any]:
    """The OpenAPI document of an edge that serves its paths below a prefix."""
    schemas = SchemaRegistry(nested_messages(binding.method.input_type for binding in known))
    paths: dict[str, dict[str, Any]] = {}
    for binding in known:
        paths.setdefault(_path(binding), {})[binding.http_method.lower()] = _operation(binding, schemas)
    services = {binding.method.containing_service.name: binding.method for binding in known}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": TITLE,
            "version": f"1.{catalogue.CONTRACT_MINOR}",
            "summary": "A message bridge for multi-tenant chat and agent products",
            "description": DESCRIPTION,
            "license": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": path_prefix or "/"}],
        "security": [{"key": []}, {}],
        "tags": [
            {"name": name, "description": comment(method.containing_service)}
            for name, method in services.items()
        ],
        "paths": paths,
        "components": {
            "schemas": {"Status": STATUS, **schemas.components},
            "responses": {"Refused": _refused()},
            "securitySchemes": SECURITY,
        },
    }


def _path(binding: Binding) -> str:
    """The path, with its variables named by their last field."""
    names = iter(binding.variables)
    segments = [each or f"{{{next(names)[-1].json_name}}}" for each in binding.pattern.segments]
    verb = binding.pattern.verb
    return "/" + "/".join(segments) + (f":{verb}" if verb else "")


def _operation(binding: Binding, schemas: SchemaRegistry) -> dict[str, Any]:
    method, text = binding.method, comment(binding.method)
    permission = f"`{Scope.Name(binding.scope)}`"  # type: ignore[arg-type]
    if binding.client_right != RIGHT_UNSPECIFIED:
        permission += f", or a client's token with the right `{_RIGHT_NAMES[binding.client_right]}`"
    operation: dict[str, Any] = {
        "operationId": _operation_id(binding),
        "tags": [method.containing_service.name],
        "summary": re.split(r"(?<=[.;:]) ", text, maxsplit=1)[0].rstrip(".;:"),
        "description": f"{text}\n\nRequires {permission}.",
        "parameters": [*_path_parameters(binding, schemas), *_query_parameters(binding, schemas)],
        "responses": _responses(binding, schemas),
    }
    if binding.scope == SCOPE_OPERATOR:
        operation["security"] = [{"key": []}]
    elif binding.client_right != RIGHT_UNSPECIFIED:
        operation["security"] = [{"key": []}, {"token": []}, {}]
    if binding.whole_body:
        elsewhere = frozenset(tuple(field.name for field in path) for path in binding.variables)
        schema = schemas.body(f"{method.name}Body", method.input_type, elsewhere)
        required = bool(schemas.components[f"{method.name}Body"].get("required"))
        operation["requestBody"] = {"required": required, "content": {JSON: {"schema": schema}}}
    elif binding.body_field is not None:
        schema = schemas.field(binding.body_field)
        required = schemas.is_required((binding.body_field,))
        operation["requestBody"] = {"required": required, "content": {JSON: {"schema": schema}}}
    return operation


def _operation_id(binding: Binding) -> str:
    """A name that no other operation has: the method's, or one for its form that answers for all tenants."""
    method = binding.method
    for_all = binding.tenant_at is None and method.GetOptions().Extensions[requires_for_all]
    return f"{method.name}OfAllTenants" if for_all else method.name


def _path_parameters(binding: Binding, schemas: SchemaRegistry) -> Iterator[dict[str, Any]]:
    for path in binding.variables:
        schema = schemas.field(path[-1])
        yield {
            "name": path[-1].json_name,
            "in": "path",
            "required": True,
            "description": schema.pop("description", ""),
            "schema": schema,
        }


def _query_parameters(binding: Binding, schemas: SchemaRegistry) -> Iterator[dict[str, Any]]:
    if binding.whole_body:
        return
    for path in _leaves(binding.method.input_type, ()):
        if path in binding.variables or path[0] is binding.body_field:
            continue
        schema = schemas.field(path[-1])
        yield {
            "name": ".".join(field.json_name for field in path),
            "in": "query",
            "required": schemas.is_required(path),
            "description": schema.pop("description", ""),
            "schema": schema,
        }


def _leaves(message: Descriptor, outer: FieldPath) -> Iterator[FieldPath]:
    """The fields that query parameters can set."""
    for field in message.fields:
        inner = field.message_type
        if inner is None:
            yield (*outer, field)
        elif not field.is_repeated and not is_map(field) and not inner.full_name.startswith("google."):
            yield from _leaves(inner, (*outer, field))


def _responses(binding: Binding, schemas: SchemaRegistry) -> dict[str, Any]:
    method = binding.method
    schema, name = schemas.ref(method.output_type), method.output_type.name
    ok: dict[str, Any] = {"description": comment(method.output_type) or "OK"}
    if method.server_streaming:
        event = f"Each event's data is a {name} in JSON; see {SCHEMAS}{name}."
        ok["content"] = {"text/event-stream": {"schema": {"type": "string", "description": event}}}
    elif binding.response_field is not None:
        ok["content"] = {JSON: {"schema": schemas.field(binding.response_field)}}
    else:
        ok["content"] = {JSON: {"schema": schema}}
    refusals = ERRORS | (BODY_ERRORS if binding.has_body else {})
    refused = {"$ref": "#/components/responses/Refused"}
    found = {str(status): refused | {"description": text} for status, text in sorted(refusals.items())}
    return {"200": ok, **found, "default": refused}


def _refused() -> dict[str, Any]:
    seconds = {"type": "integer", "minimum": 1}
    return {
        "description": "The call was refused.",
        "headers": {
            "Retry-After": {"description": "Seconds after which to retry, if known.", "schema": seconds}
        },
        "content": {JSON: {"schema": {"$ref": SCHEMAS + "Status"}}},
    }
