"""The import graph of all distributions has no cycles, imports under TYPE_CHECKING included."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.architecture.distributions import modules, parsed


def imported(module: str) -> Iterator[str]:
    """The product's modules that a module imports, anywhere in it."""
    known = modules()
    for node in ast.walk(parsed(known[module])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            # `from package import module` depends on the module, not on what else the package holds.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in names if name in known)
            if any(name not in known for name in names):
                yield node.module


def components(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan's algorithm, without recursion)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []
    for root in graph:
        if root in index:
            continue
        work = [(root, iter(sorted(graph[root])))]
        index[root] = low[root] = len(index)
        stack.append(root)
        while work:
            node, successors = work[-1]
            for successor in successors:
                if successor not in index:
                    index[successor] = low[successor] = len(index)
                    stack.append(successor)
                    work.append((successor, iter(sorted(graph[successor]))))
                    break
                if successor in stack:
                    low[node] = min(low[node], index[successor])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    start = stack.index(node)
                    component = sorted(stack[start:])
                    del stack[start:]
                    if len(component) > 1:
                        found.append(component)
    return found


def cycle_in(component: list[str], graph: dict[str, set[str]]) -> str:
    """A shortest cycle through the first module of a component, such as `a -> b -> a`."""
    start = component[0]
    paths = [[start]]
    while paths:
        path = paths.pop(0)
        for successor in sorted(graph[path[-1]] & set(component)):
            if successor == start:
                return " -> ".join([*path, start])
            if successor not in path:
                paths.append([*path, successor])
    raise AssertionError("a strongly connected component has a cycle")


def graph() -> dict[str, set[str]]:
    return {module: set(imported(module)) - {module} for module in modules()}


def test_no_modules_import_each_other() -> None:
    edges = graph()
    cycles = [cycle_in(component, edges) for component in components(edges)]
    assert not cycles, "\n".join(cycles)


@pytest.mark.parametrize(
    ("edges", "cycle"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": {"a"}}, "a -> b -> c -> a"),
        ({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}, "b -> d -> b"),
    ],
)
def test_a_cycle_is_found_and_named(edges: dict[str, set[str]], cycle: str) -> None:
    (component,) = components({"x": set(), **edges})
    assert cycle_in(component, edges) == cycle


def test_a_graph_without_cycles_has_no_components() -> None:
    assert components({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
