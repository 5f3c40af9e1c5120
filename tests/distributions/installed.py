"""Builds the distributions of this repository and installs them into separate environments."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

from tests.support.processes import ROOT, environment

#: Directory of each distribution, by name.
PROJECTS = {
    "trunkline-contract": ROOT / "protos",
    "trunkline-runtime": ROOT / "runtime",
    "trunkline-edge": ROOT / "edge",
    "trunkline-router": ROOT / "router",
    "trunkline-client": ROOT / "clients" / "python",
}
#: pip may have to download packages.
PIP_TIMEOUT_S = 300.0


def run(*command: str, cwd: Path = ROOT, **env: str) -> str:
    """Run a command and return its stdout; fail with its output if it fails."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment({"PYTHONPATH": "", **env}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PIP_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def build(name: str, wheels: Path) -> Path:
    """Build the wheel of a distribution from its source archive, like `python -m build`."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(wheels), str(PROJECTS[name]))
    (wheel,) = wheels.glob(f"{name.replace('-', '_')}-*.whl")
    return wheel


class Environment:
    """Virtual environment with one wheel and its dependencies."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=os.name != "nt")
        self.bin = folder / "bin"
        self._folder = folder
        self._wheel = wheel
        self._install(str(wheel))

    def add_extra(self, extra: str) -> None:
        """Install the dependencies of one of the wheel's extras."""
        self._install(f"{self._wheel}[{extra}]")

    def python(self, program: str) -> str:
        """Run a program in the environment, outside the repository; return its stdout."""
        return run(str(self.bin / "python"), "-I", "-c", program, cwd=self._folder)

    def command(self, name: str, *arguments: str) -> str:
        """Run a command installed by the wheel; return its stdout."""
        return run(str(self.bin / name), *arguments, cwd=self._folder)

    def packages(self) -> set[str]:
        """Return the importable packages of this project."""
        names = ["trunkline", "trunkline_runtime", "trunkline_edge", "trunkline_router", "trunkline_client"]
        found = self.python(
            f"from importlib.util import find_spec; print(*[n for n in {names!r} if find_spec(n)])"
        )
        return set(found.split())

    def import_all(self, package: str, *, without: str = "__main__") -> None:
        """Import every module of a package; fail if a dependency is not declared.

        Modules whose name contains `without` are left out.
        """
        self.python(
            f"import importlib, pkgutil, {package} as package; "
            "[importlib.import_module(module.name)"
            f" for module in pkgutil.walk_packages(package.__path__, '{package}.')"
            f" if '__main__' not in module.name and {without!r} not in module.name]"
        )

    def _install(self, what: str) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python")]
        options = ["--quiet", "--disable-pip-version-check", "--constraint", str(ROOT / "constraints.txt")]
        run(*pip, "install", *options, "--find-links", str(self._wheel.parent), what)
