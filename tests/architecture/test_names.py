"""Names of the product are unique, and docstrings are sentences about the thing itself."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

from tests.architecture.distributions import ROOT, modules, parsed

#: File names that every package may have.
COMMON = {"__init__", "__main__", "conftest"}

#: Packages whose modules and classes have the names of their counterparts in the others.
ENGINES = "trunkline_router.log."

_ODD_START = re.compile(r"(What|Who|Whose|Whom|Where|How|It is)\b")


def are_counterparts(places: list[str]) -> bool:
    """Whether these modules are of one engine of the log each."""
    engines = [place.removeprefix(ENGINES).split(".")[0] for place in places if place.startswith(ENGINES)]
    return len(set(engines)) == len(places) and set(engines) <= {"sqlite", "postgres"}


def test_no_class_name_is_used_twice_in_the_product() -> None:
    places = defaultdict(list)
    for module, path in modules().items():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module)
    twice = {name: where for name, where in places.items() if len(where) > 1 and not are_counterparts(where)}
    assert not twice


def test_no_module_name_is_used_twice_in_a_distribution() -> None:
    places = defaultdict(list)
    for module, path in modules().items():
        if path.stem not in COMMON:
            places[module.split(".")[0], path.stem].append(module)
    twice = {name: where for name, where in places.items() if len(where) > 1 and not are_counterparts(where)}
    assert not twice


def odd_docstrings(path: Path) -> list[str]:
    """Docstrings that begin with a relative clause rather than a noun or a verb."""
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node) or ""
            if _ODD_START.match(text):
                line = getattr(node, "lineno", 1)
                found.append(f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}")
    return found


def test_docstrings_begin_with_the_thing_or_the_act() -> None:
    odd = [line for path in modules().values() for line in odd_docstrings(path)]
    assert not odd, "\n".join(odd)
