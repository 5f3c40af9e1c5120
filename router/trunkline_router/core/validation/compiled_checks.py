"""Compiles constraints into one check per message type.

A check reads fields by name and visits only those that are set; descriptors are consulted while compiling
and never afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor

from trunkline_router.core.validation.constraints import REQUIRED, Constraint

#: Checks a message. Raises InvalidField for the first field at fault.
Check = Callable[[Any], None]
_Problem = Callable[[Any], str | None]

_PACKAGE = "trunkline.v1."


class InvalidField(Exception):
    """A field is invalid. `path` leads to it, innermost name first; empty for the whole message."""

    def __init__(self, problem: str, *path: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = list(path)


class CompiledCheck(NamedTuple):
    """Check of one message type."""

    #: Describes the problem with a serialized size, if the type limits it.
    size_problem: _Problem | None
    check_fields: Check

    def check(self, message: Any) -> None:
        """Check a message within another one."""
        if self.size_problem and (problem := self.size_problem(message.ByteSize())):
            raise InvalidField(problem)
        self.check_fields(message)


class _Scalar(NamedTuple):
    """A scalar, repeated scalar or map: valid if it is unset and not required, or without a problem."""

    name: str
    problem: _Problem
    is_required: bool


class CheckCompiler:
    """Compiles the check of each message type on its first use."""

    def __init__(self, constraints: Mapping[str, Constraint]) -> None:
        self._constraints = constraints
        self._checks: dict[Descriptor, CompiledCheck] = {}

    def check_of(self, descriptor: Descriptor) -> CompiledCheck:
        """Return the check of a message type."""
        found = self._checks.get(descriptor)
        if found is None:
            whole = self._constraints.get(descriptor.name)
            found = CompiledCheck(whole.problem if whole else None, self._compile(descriptor))
            self._checks[descriptor] = found
        return found

    def replace(self, descriptor: Descriptor, check: Check) -> None:
        """Use another check for a message type; call this before a type that contains it is compiled."""
        self._checks[descriptor] = CompiledCheck(None, check)

    def _compile(self, descriptor: Descriptor) -> Check:
        scalars: list[_Scalar] = []
        others: list[Check] = []
        for field in descriptor.fields:
            if field.containing_oneof is not None:
                continue
            constraint = self._constraint(field)
            if field.message_type is None or _is_map(field):
                if constraint is not None:
                    scalars.append(_Scalar(field.name, constraint.problem, _rejects_unset(field, constraint)))
                if inner := self._map_value(field):
                    others.append(_check_map(field.name, inner))
            elif check := self._message_field(field, constraint):
                others.append(check)
        others += [check for oneof in descriptor.oneofs if (check := self._oneof(oneof))]
        if not scalars and len(others) == 1:
            return others[0]
        if len(scalars) == 1 and not others and not scalars[0].is_required:
            return _check_optional(scalars[0])
        return _check_all(tuple(scalars), tuple(others))

    def _constraint(self, field: FieldDescriptor) -> Constraint | None:
        return self._constraints.get(field.full_name.removeprefix(_PACKAGE))

    def _inner(self, field: FieldDescriptor) -> Check | None:
        """The check of a field's message type, if that is one of the contract's."""
        if field.message_type is None or not field.message_type.full_name.startswith(_PACKAGE):
            return None
        compiled = self.check_of(field.message_type)
        return compiled.check if compiled.size_problem else compiled.check_fields

    def _map_value(self, field: FieldDescriptor) -> Check | None:
        """The check of a map's values, if they are messages of the contract."""
        if field.message_type is None or not _is_map(field):
            return None
        return self._inner(field.message_type.fields_by_name["value"])

    def _message_field(self, field: FieldDescriptor, constraint: Constraint | None) -> Check | None:
        inner = self._inner(field)
        problem_of = None if constraint in (None, REQUIRED) else constraint.problem
        is_required = constraint is not None and _rejects_unset(field, constraint)
        if inner is None and problem_of is None and not is_required:
            return None
        if field.is_repeated:
            return _check_repeated(field.name, problem_of, inner, is_required)
        return _check_message(field.name, problem_of, inner, is_required)

    def _oneof(self, oneof: OneofDescriptor) -> Check | None:
        members: dict[str, Check] = {}
        for field in oneof.fields:
            constraint, inner = self._constraint(field), self._inner(field)
            problem_of = None if constraint in (None, REQUIRED) else constraint.problem
            if problem_of:
                members[field.name] = _check_value(problem_of, inner)
            elif inner:
                members[field.name] = inner
        is_union = oneof.containing_type.name == "Part"
        return _check_oneof(oneof.name, members, is_required=is_union) if members else None


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _rejects_unset(field: FieldDescriptor, constraint: Constraint) -> bool:
    if constraint.required or (field.message_type is not None and not field.is_repeated):
        return constraint.required
    unset: Any = {} if field.is_repeated else field.default_value
    return constraint.problem(unset) is not None


def _check_all(scalars: tuple[_Scalar, ...], others: tuple[Check, ...]) -> Check:
    def check_all(message: Any) -> None:
        for name, problem_of, is_required in scalars:
            value = getattr(message, name)
            if value:
                if problem := problem_of(value):
                    raise InvalidField(problem, name)
            elif is_required:
                raise InvalidField("must be set", name)
        for check in others:
            check(message)

    return check_all


def _check_optional(scalar: _Scalar) -> Check:
    """For a type with one constrained field, such as TextPart."""
    name, problem_of, _ = scalar

    def check_optional(message: Any) -> None:
        value = getattr(message, name)
        if value and (problem := problem_of(value)):
            raise InvalidField(problem, name)

    return check_optional


def _check_value(problem_of: _Problem, inner: Check | None) -> Check:
    """For a member of a oneof; the oneof adds its name to the path."""

    def check_value(value: Any) -> None:
        if problem := problem_of(value):
            raise InvalidField(problem)
        if inner:
            inner(value)

    return check_value


def _check_message(name: str, problem_of: _Problem | None, inner: Check | None, is_required: bool) -> Check:
    def check_message(message: Any) -> None:
        if not message.HasField(name):
            if is_required:
                raise InvalidField("must be set", name)
            return
        value = getattr(message, name)
        if problem_of and (problem := problem_of(value)):
            raise InvalidField(problem, name)
        if inner:
            try:
                inner(value)
            except InvalidField as invalid:
                invalid.path.append(name)
                raise

    return check_message


def _check_repeated(name: str, problem_of: _Problem | None, inner: Check | None, is_required: bool) -> Check:
    def check_repeated(message: Any) -> None:
        values = getattr(message, name)
        if not values:
            if is_required:
                raise InvalidField("must be set", name)
            return
        if problem_of and (problem := problem_of(values)):
            raise InvalidField(problem, name)
        if inner:
            try:
                for item in values:
                    inner(item)
            except InvalidField as invalid:
                invalid.path.append(f"{name}[{_index_of_invalid(values, inner)}]")
                raise

    return check_repeated


def _check_map(name: str, inner: Check) -> Check:
    def check_map(message: Any) -> None:
        for key, item in getattr(message, name).items():
            try:
                inner(item)
            except InvalidField as invalid:
                invalid.path.append(f"{name}[{key}]")
                raise

    return check_map


def _index_of_invalid(items: Iterable[Any], check: Check) -> int:
    """Return the index of the first invalid item; counting while checking would slow down valid messages."""
    for index, item in enumerate(items):
        try:
            check(item)
        except InvalidField:
            return index
    raise AssertionError("every item is valid")


def _check_oneof(name: str, members: dict[str, Check], *, is_required: bool) -> Check:
    def check_oneof(message: Any) -> None:
        chosen = message.WhichOneof(name)
        check = members.get(chosen)
        if check is not None:
            try:
                check(getattr(message, chosen))
            except InvalidField as invalid:
                invalid.path.append(chosen)
                raise
        elif chosen is None and is_required:
            raise InvalidField(f"must have a {name}")

    return check_oneof
