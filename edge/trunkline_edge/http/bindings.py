"""HTTP bindings of RPCs, read from the `google.api.http` annotations of `trunkline.v1`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass

import trunkline.v1
from google.api.annotations_pb2 import http
from google.api.http_pb2 import HttpRule
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from trunkline.v1.access_pb2 import Right, audited, client_right, requires, requires_for_all

from trunkline_edge.http.path_router import Pattern, pattern_of

#: Fields that name a request's tenant; the first one that its type has counts.
TENANTS = ("tenant", "address.tenant")

FieldPath = tuple[FieldDescriptor, ...]


@dataclass(frozen=True)
class Binding:
    """One HTTP form of an RPC."""

    method: MethodDescriptor
    http_method: str
    template: str
    pattern: Pattern
    #: The fields that the path's variables set, in order.
    variables: tuple[FieldPath, ...]
    #: The body is the whole request, except the fields in the path.
    whole_body: bool
    #: The only field in the body, if not the whole request.
    body_field: FieldDescriptor | None
    #: The only field of the response in its body, if not the whole response.
    response_field: FieldDescriptor | None
    #: Index of the path's variable that names the tenant; None if no existing tenant is named.
    tenant_at: int | None
    #: The Scope that the caller needs.
    scope: int
    #: The Right that a client needs instead; unspecified if clients may not make the call.
    client_right: Right.ValueType
    #: The router records calls, and refused attempts as well.
    is_audited: bool
    request: type[Message]

    def tenant_in(self, values: tuple[str, ...]) -> str:
        """The tenant among the values of the path's variables; empty if they contain none."""
        return values[self.tenant_at] if self.tenant_at is not None else ""

    @property
    def has_body(self) -> bool:
        """Whether a request has a body."""
        return self.whole_body or self.body_field is not None

    def __str__(self) -> str:
        return f"{self.http_method} {self.template} ({self.method.full_name})"


def services() -> list[ServiceDescriptor]:
    """The contract's services, sorted by name."""
    found = []
    for module in pkgutil.iter_modules(trunkline.v1.__path__):
        if module.name.endswith("_service_pb2"):
            file = importlib.import_module(f"trunkline.v1.{module.name}").DESCRIPTOR
            found += list(file.services_by_name.values())
    return sorted(found, key=lambda service: service.full_name)


def bindings() -> list[Binding]:
    """Every HTTP form of every RPC, the streaming ones included.

    Raises ValueError for an annotation that is not supported.
    """
    return [
        binding for service in services() for method in service.methods for binding in bindings_of(method)
    ]


def bindings_of(method: MethodDescriptor) -> list[Binding]:
    """The HTTP forms of one RPC; none without an annotation."""
    if method.client_streaming or not method.GetOptions().HasExtension(http):
        return []
    rule: HttpRule = method.GetOptions().Extensions[http]
    return [_binding(method, each) for each in _rules(rule)]


def _rules(rule: HttpRule) -> Iterator[HttpRule]:
    yield rule
    yield from rule.additional_bindings


def _scope(method: MethodDescriptor, *, names_tenant: bool) -> int:
    options = method.GetOptions()
    for_all: int = options.Extensions[requires_for_all]
    scope: int = options.Extensions[requires]
    return scope if names_tenant else for_all or scope


def _binding(method: MethodDescriptor, rule: HttpRule) -> Binding:
    kind = rule.WhichOneof("pattern")
    if kind is None:
        raise ValueError(f"{method.full_name}: the annotation has no pattern")
    custom = kind == "custom"
    template = rule.custom.path if custom else getattr(rule, kind)
    pattern = pattern_of(template)
    variables = tuple(field_path(method.input_type, name) for name in pattern.variables)
    tenant = tenant_path(method)
    return Binding(
        method=method,
        http_method=rule.custom.kind if custom else kind.upper(),
        template=template,
        pattern=pattern,
        variables=variables,
        whole_body=rule.body == "*",
        body_field=_field(method.input_type, "" if rule.body == "*" else rule.body),
        response_field=_field(method.output_type, rule.response_body),
        tenant_at=variables.index(tenant) if tenant in variables else None,
        scope=_scope(method, names_tenant=tenant in variables),
        client_right=method.GetOptions().Extensions[client_right],
        is_audited=method.GetOptions().Extensions[audited],
        request=GetMessageClass(method.input_type),
    )


def tenant_path(method: MethodDescriptor) -> FieldPath:
    """The path of the request's field that names the tenant; empty for none."""
    for name in TENANTS:
        try:
            return field_path(method.input_type, name)
        except ValueError:
            continue
    return ()


def _field(message: Descriptor, name: str) -> FieldDescriptor | None:
    return field_path(message, name)[0] if name else None


def field_path(message: Descriptor, name: str) -> FieldPath:
    """The fields from a message to a nested field. Raises ValueError for an unknown field."""
    path: list[FieldDescriptor] = []
    inside: Descriptor | None = message
    for part in name.split("."):
        field = inside.fields_by_name.get(part) if inside else None
        if field is None or (path and path[-1].is_repeated):
            raise ValueError(f"{message.full_name} has no field {name}")
        path.append(field)
        inside = field.message_type
    return tuple(path)
