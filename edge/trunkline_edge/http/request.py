"""Builds an RPC's request message from the path, query and body of an HTTP request."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from trunkline.v1 import catalogue
from trunkline_runtime.free_form import MAX_MESSAGE_VALUES

from trunkline_edge.dialects.json_text import count_above, decode_json
from trunkline_edge.http.bindings import Binding, FieldPath
from trunkline_edge.http.fair_worker import LARGE_BYTES
from trunkline_edge.http.json_decode import Unreadable, decoder, is_map, value_decoder

#: Nested objects and arrays. Protobuf parsers accept 100 levels, of which each level of a Struct takes three.
#: The router enforces the lower limits of single fields, and names the field.
MAX_DEPTH = 32

#: Values in a body. A message with the most free-form values, in the most parts, has fewer.
MAX_VALUES = 2 * MAX_MESSAGE_VALUES

#: A body with more is not decoded on the event loop: these take a millisecond.
QUICK_VALUES = 256

MAX_PARAMETERS = 128

#: Names of fields in a refusal, which may be whatever the caller sent, are cut.
_NAME_CHARACTERS = 128
_PROBLEM_CHARACTERS = 512

Tree = dict[str, Any]

_decode = msgspec.json.Decoder().decode


def is_quick(body: bytes) -> bool:
    """Return True if decoding the body takes no longer than other callbacks of the event loop."""
    return len(body) <= LARGE_BYTES and not count_above(body, QUICK_VALUES)


def request_message(binding: Binding, values: tuple[str, ...], query: bytes, body: bytes) -> Message:
    """Build the request message. Raises Refused INVALID_ARGUMENT."""
    try:
        tree = _body_tree(binding, body) if binding.has_body else {}
        content = decoder(binding.method.input_type)(tree)
        for path, value in zip(binding.variables, values, strict=True):
            _put_variable(content, path, value)
        if query:
            _put_query(binding, content, query)
        return binding.request(**content)
    except Unreadable as unreadable:
        raise _refused(unreadable.field or "body", unreadable.problem) from None
    except (ValueError, TypeError, ArithmeticError) as error:
        # No known input gets here; the constructor's text is fit for the caller.
        raise _refused("body", str(error)) from None


def _refused(field: str, problem: str) -> catalogue.Refused:
    return catalogue.INVALID_ARGUMENT.refused(
        field=field[:_NAME_CHARACTERS], problem=problem[:_PROBLEM_CHARACTERS]
    )


def _body_tree(binding: Binding, body: bytes) -> Tree:
    """The decoded body, placed where it belongs in the request message."""
    if not body:
        return {}
    if values := count_above(body, MAX_VALUES):
        raise Unreadable(f"has {values} values; at most {MAX_VALUES} are allowed")
    try:
        value = decode_json(_decode, body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreadable(f"is not JSON: {error}") from None
    except RecursionError:
        raise Unreadable(f"is nested more than {MAX_DEPTH} levels deep") from None
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _too_deep(value):
        raise Unreadable(f"is nested more than {MAX_DEPTH} levels deep")
    if binding.body_field is not None:
        return {binding.body_field.name: value}
    if type(value) is not dict:
        raise Unreadable("must be an object")
    return value


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _put_variable(content: Tree, path: FieldPath, text: str) -> None:
    """Set a field from the path; the body may repeat the same value."""
    names = [field.name for field in path]
    value = _decode_text(path, text, ".".join(names))
    *outer, last = names
    inside = content
    for name in outer:
        inside = inside.setdefault(name, {})
    if inside.setdefault(last, value) != value:
        raise Unreadable("differs from the value in the path", *reversed(names))


def _put_query(binding: Binding, content: Tree, query: bytes) -> None:
    if binding.whole_body:
        raise Unreadable("this call takes no parameters; send all fields in the body", "query")
    fixed = {tuple(field.name for field in path) for path in binding.variables}
    seen: set[tuple[str, ...]] = set()
    for name, text in _parameters(query):
        path = _parameter_path(binding.method.input_type, name)
        names = tuple(field.name for field in path)
        if names in fixed or path[0] is binding.body_field:
            raise Unreadable("is set elsewhere in the request", name)
        if names in seen and not path[-1].is_repeated:
            raise Unreadable("is set twice", name)
        seen.add(names)
        _put_parameter(content, path, _decode_text(path, text, name), name)


def _parameters(query: bytes) -> list[tuple[str, str]]:
    """Decoded names and values of a query's parameters."""
    if query.count(b"&") >= MAX_PARAMETERS:
        raise Unreadable(f"has more than {MAX_PARAMETERS} parameters", "query")
    found = []
    for part in query.split(b"&"):
        name, _, value = part.replace(b"+", b" ").partition(b"=")
        try:
            if part:
                found.append((unquote_to_bytes(name).decode(), unquote_to_bytes(value).decode()))
        except UnicodeDecodeError:
            raise Unreadable("is not UTF-8", "query") from None
    return found


def _parameter_path(message: Descriptor, name: str) -> FieldPath:
    path: list[FieldDescriptor] = []
    inside: Descriptor | None = message
    for part in name.split("."):
        field = _field(inside, part) if inside is not None else None
        if field is None or (path and path[-1].is_repeated):
            raise Unreadable("unknown parameter", name or "query")
        path.append(field)
        own = field.message_type is not None and field.message_type.file.package != "google.protobuf"
        inside = field.message_type if own and not is_map(field) else None
    if inside is not None or is_map(path[-1]):
        raise Unreadable("is a message; set one of its fields", name)
    return tuple(path)


def _field(message: Descriptor, name: str) -> FieldDescriptor | None:
    found = message.fields_by_name.get(name)
    return found or next((field for field in message.fields if field.json_name == name), None)


def _put_parameter(content: Tree, path: FieldPath, value: Any, name: str) -> None:
    inside = content
    for field in path:
        oneof = field.containing_oneof
        for other in oneof.fields if oneof else ():
            if other.name in inside and other is not field:
                raise Unreadable(f"cannot be set together with {other.name}", name)
        if field is path[-1]:
            break
        inside = inside.setdefault(field.name, {})
    if path[-1].is_repeated:
        inside.setdefault(path[-1].name, []).append(value)
    else:
        inside[path[-1].name] = value


def _decode_text(path: FieldPath, text: str, name: str) -> Any:
    """Decode a field's value, or one item of a repeated field, from a URL."""
    field = path[-1]
    value: Any = text
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        value = {"true": True, "false": False}.get(text, text)
    try:
        return value_decoder(field)(value)
    except Unreadable as unreadable:
        raise Unreadable(unreadable.problem, name) from None
