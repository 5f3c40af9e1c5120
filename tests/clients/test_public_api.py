"""The public API: every call is documented, and every type that it names is exported."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator
from pkgutil import walk_packages
from typing import Any

import pytest
import trunkline_client as PACKAGE  # noqa: N812 -- a constant of this module

#: Classes whose instances other calls return; their constructors are no part of the API.
RETURNED = {"MessageWriter", "OpenMessage", "Publisher", "ReplyStream", "StreamedReply"}

EXPORTED = {name: getattr(PACKAGE, name) for name in PACKAGE.__all__}


def is_class(value: Any) -> bool:
    """Whether an export is a class of the client."""
    return inspect.isclass(value) and value.__module__.startswith("trunkline_client")


def is_ours(value: type) -> bool:
    """Whether a class belongs to the client or the contract."""
    return value.__module__.split(".")[0] in ("trunkline_client", "trunkline")


def public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every exported function, and every public method of an exported class of the client."""
    for name, value in EXPORTED.items():
        if not getattr(value, "__module__", "").startswith("trunkline_client"):
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            for attribute, member in inspect.getmembers_static(value):
                if not attribute.startswith("_") and inspect.isfunction(member):
                    yield f"{name}.{attribute}", member


FUNCTIONS = dict(public_functions())


def section(doc: str, title: str) -> list[str]:
    """The entries of a docstring's section; empty without one."""
    lines = inspect.cleandoc(doc).splitlines()
    if f"{title}:" not in lines:
        return []
    found = []
    for line in lines[lines.index(f"{title}:") + 1 :]:
        if line and not line.startswith(" "):
            break
        if line.startswith("    ") and not line.startswith("     "):
            found.append(line.strip())
    return found


def parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_call_documents_its_arguments_result_and_errors(name: str) -> None:
    function = FUNCTIONS[name]
    doc = function.__doc__ or ""
    documented = [entry.partition(":")[0] for entry in section(doc, "Args")]
    assert documented == parameters(function), "Args names each parameter, in order"
    returns = typing.get_type_hints(function).get("return", type(None))
    assert bool(section(doc, "Returns")) is (returns is not type(None)), (
        "Returns is there if there is a result"
    )
    assert section(doc, "Raises"), "Raises is there"


@pytest.mark.parametrize("name", ["ReadOnlyBackend", "ReadOnlyClient", "Worker"])
def test_a_class_documents_the_arguments_of_its_constructor(name: str) -> None:
    documented = [entry.partition(":")[0] for entry in section(EXPORTED[name].__doc__ or "", "Args")]
    assert documented == parameters(EXPORTED[name].__init__)


def named_types(hint: Any) -> Iterator[type]:
    """Every class within an annotation."""
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias):
        yield hint
    for argument in typing.get_args(hint):
        if isinstance(argument, list):
            for each in argument:
                yield from named_types(each)
        else:
            yield from named_types(argument)


def annotations_of(value: type) -> Iterator[tuple[str, Any]]:
    """Public annotations of a class, except for its methods: its fields, constructor and properties."""
    if dataclasses.is_dataclass(value) or issubclass(value, tuple):
        yield from typing.get_type_hints(value).items()
    elif value.__name__ not in RETURNED and "__init__" in vars(value):
        yield from typing.get_type_hints(vars(value)["__init__"]).items()
    for name, member in inspect.getmembers_static(value):
        if isinstance(member, property):
            yield name, typing.get_type_hints(member.fget)["return"]


def signatures() -> Iterator[tuple[str, Any]]:
    """Every public annotation."""
    for name, function in FUNCTIONS.items():
        for hint in typing.get_type_hints(function).values():
            yield name, hint
    for name, value in EXPORTED.items():
        if is_class(value):
            for part, hint in annotations_of(value):
                if not part.startswith("_"):
                    yield f"{name}.{part}", hint


def test_every_type_in_a_public_signature_is_exported() -> None:
    exported = [value for value in EXPORTED.values() if inspect.isclass(value)]
    missing = {
        (where, each.__name__)
        for where, hint in signatures()
        for each in named_types(hint)
        if is_ours(each) and each not in exported
    }
    assert not missing


def aliases() -> set[str]:
    """Names of the type aliases that the package defines."""
    modules = [
        importlib.import_module(each.name) for each in walk_packages(PACKAGE.__path__, "trunkline_client.")
    ]
    return {
        name
        for module in modules
        for name, hint in getattr(module, "__annotations__", {}).items()
        if hint == "TypeAlias"
    }


def test_every_alias_in_a_public_signature_is_exported() -> None:
    classes = [value for value in EXPORTED.values() if is_class(value)]
    functions = [*FUNCTIONS.values(), *(vars(each).get("__init__") for each in classes)]
    annotations = [str(text) for each in functions if each for text in inspect.get_annotations(each).values()]
    named = {word for text in annotations for word in re.findall(r"\w+", text)}
    assert named & aliases() - set(EXPORTED) == set()


def test_the_names_exported_are_sorted_and_unique() -> None:
    assert PACKAGE.__all__ == sorted(set(PACKAGE.__all__))
