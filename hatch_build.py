"""Build hook: compiles the contract, so that its Python stubs are built and never committed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompileContract(BuildHookInterface):  # type: ignore[type-arg]
    """Writes `trunkline.v1` to build/stubs: an editable install reads it there, a wheel packs it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        sys.path.insert(0, str(root / "protos"))
        try:
            from compile import compile_python  # type: ignore[import-not-found]
        finally:
            sys.path.pop(0)
        stubs = root / "build" / "stubs"
        compile_python(stubs)
        if version == "standard":
            build_data["force_include"][str(stubs / "trunkline")] = "trunkline"
