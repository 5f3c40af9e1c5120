"""Every HTTP form of every RPC, arbitrary request messages, and the requests that carry them."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st
from trunkline_edge.http.bindings import Binding, bindings
from trunkline_edge.http.path_router import PathRouter

if TYPE_CHECKING:
    from collections.abc import Callable

    from trunkline_edge.http.bindings import FieldPath

BINDINGS = bindings()
TABLE: PathRouter[Binding] = PathRouter()
for each in BINDINGS:
    TABLE.add(each.http_method, each.pattern, each)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ID = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | TEXT | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: TEXT,
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=12),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
}


def messages(message: Descriptor) -> st.SearchStrategy[Message]:
    """A strategy for arbitrary messages of a type."""
    return _contents(message).map(lambda content: GetMessageClass(message)(**content))


def _contents(message: Descriptor) -> st.SearchStrategy[dict[str, Any]]:
    if message.full_name == "google.protobuf.Struct":
        return st.dictionaries(TEXT, JSON_VALUES, max_size=3)
    if message.full_name == "google.protobuf.Timestamp":
        return st.fixed_dictionaries({"seconds": st.integers(0, 2**33), "nanos": st.integers(0, 999_999_999)})
    if message.full_name == "google.protobuf.FieldMask":
        return st.fixed_dictionaries({"paths": st.lists(st.sampled_from(["limits", "open_to"]), max_size=3)})
    plain = {field.name: _values(field) for field in message.fields if field.containing_oneof is None}
    content: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries({}, optional=plain)
    for oneof in message.oneofs:
        branches = [st.fixed_dictionaries({field.name: _values(field)}) for field in oneof.fields]
        content = st.builds(lambda one, other: one | other, content, st.just({}) | st.one_of(branches))
    return content


def _values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        return st.dictionaries(TEXT, _values(inner.fields_by_name["value"]), max_size=3)
    if inner is not None:
        value: st.SearchStrategy[Any] = st.deferred(lambda: _contents(inner))
    elif field.enum_type is not None:
        value = st.sampled_from([each.number for each in field.enum_type.values])
    else:
        value = SCALARS[field.type]
    return st.lists(value, max_size=3) if field.is_repeated else value


def fill_path(binding: Binding, message: Message, values: list[str]) -> None:
    """Set the fields in the path, which cannot be empty."""
    for path, value in zip(binding.variables, values, strict=True):
        inside: Any = message
        for field in path[:-1]:
            inside = getattr(inside, field.name)
        setattr(inside, path[-1].name, value)


def url_of(binding: Binding, message: Message, *, short: bool = False) -> str:
    """Path and query of a message, with enum values as numbers or by their short names."""
    values = iter([quote(str(_at(message, path)), safe="") for path in binding.variables])
    path = "/".join(segment or next(values) for segment in binding.pattern.segments)
    path = f"/{path}" + (f":{binding.pattern.verb}" if binding.pattern.verb else "")
    query = [] if binding.has_body else list(_query(message, (), set(binding.variables), short))
    return f"{path}?{urlencode(query)}" if query else path


def body_of(binding: Binding, message: Message, *, short: bool = False) -> bytes:
    """The body, with the message's other fields, and enum values by their long or short names."""
    if not binding.has_body:
        return b""
    content = MessageToDict(message)
    if short:
        _shorten(message.DESCRIPTOR, content)
    for path in binding.variables:
        inside = content
        for field in path[:-1]:
            inside = inside[field.json_name]
        del inside[path[-1].json_name]
    return json.dumps(content).encode()


def short_name(enum: EnumDescriptor, long: str) -> str:
    """The name of an enum value on WebSockets, which have none for the unspecified one."""
    if not enum.values_by_name[long].number:
        return long
    prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", enum.name).upper() + "_"
    assert long.startswith(prefix)
    return long.removeprefix(prefix).lower()


def _shorten(message: Descriptor, content: dict[str, Any]) -> None:
    """Replace long names of enum values, at any depth."""
    for field in message.fields:
        found = content.get(field.json_name)
        if found is None or (field.message_type or field.enum_type) is None:
            continue
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        one = field.message_type.fields_by_name["value"] if is_map else field
        if one.enum_type is not None:
            content[field.json_name] = _each(found, partial(short_name, one.enum_type), is_map)
        elif one.message_type is not None and one.message_type.file.package == "trunkline.v1":
            _each(found, partial(_shorten, one.message_type), is_map)


def _each(found: Any, convert: Callable[[Any], Any], is_map: bool) -> Any:
    if is_map:
        return {key: convert(value) for key, value in found.items()}
    return [convert(value) for value in found] if isinstance(found, list) else convert(found)


def _at(message: Any, path: FieldPath) -> Any:
    for field in path:
        message = getattr(message, field.name)
    return message


def _query(message: Message, outer: FieldPath, elsewhere: set[FieldPath], short: bool) -> Any:
    for field, value in message.ListFields():
        path = (*outer, field)
        name = ".".join(each.json_name for each in path)
        if path in elsewhere:
            continue
        if field.message_type is not None and field.message_type.file.package == "google.protobuf":
            yield name, MessageToDict(message)[field.json_name]
        elif field.message_type is None:
            if short and field.enum_type is not None:
                value = short_name(field.enum_type, field.enum_type.values_by_number[value].name)
            yield name, str(value).lower() if isinstance(value, bool) else str(value)
        elif value.ListFields() or any(known[: len(path)] == path for known in elsewhere):
            yield from _query(value, path, elsewhere, short)
        else:
            # One of its fields makes an empty message present.
            yield from _presence(field.message_type, name)


def _presence(message: Descriptor, name: str) -> Any:
    field = next(field for field in message.fields if field.containing_oneof is None)
    if field.message_type is not None:
        yield from _presence(field.message_type, f"{name}.{field.json_name}")
    else:
        yield f"{name}.{field.json_name}", "" if field.type == FieldDescriptor.TYPE_STRING else "0"
