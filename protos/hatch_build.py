"""Build hook: generates the package `trunkline` from the .proto files when a wheel is built."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompileContract(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles the contract into the wheel, or into build/stubs for an editable install."""

    _generated: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        sys.path.insert(0, str(root))
        try:
            from compile import compile_python  # type: ignore[import-not-found]
        finally:
            sys.path.pop(0)
        if version == "editable":
            compile_python(root.parent / "build" / "stubs")
            return
        self._generated = Path(tempfile.mkdtemp(prefix="trunkline-contract-"))
        compile_python(self._generated)
        build_data["force_include"][str(self._generated / "trunkline")] = "trunkline"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._generated is not None:
            shutil.rmtree(self._generated, ignore_errors=True)
