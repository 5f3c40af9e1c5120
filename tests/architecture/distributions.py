"""Source files of the product, by distribution, and the names of their modules."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: The package of each distribution, by its folder from the root.
PACKAGES = {
    "edge": "trunkline_edge",
    "router": "trunkline_router",
    "runtime": "trunkline_runtime",
    "clients/python": "trunkline_client",
}


@cache
def modules() -> dict[str, Path]:
    """The path of every module, by its dotted name."""
    found = {}
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder / package).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = path
    return found


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(path.read_text(encoding="utf-8"), path)
