"""Builds the distributions of this repository, and installs one into an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

from tests.support.processes import ROOT, environment

#: Folder of each distribution, by its name.
PROJECTS = {
    "trunkline-contract": ROOT / "protos",
    "trunkline-runtime": ROOT / "runtime",
    "trunkline-edge": ROOT / "edge",
    "trunkline-router": ROOT / "router",
    "trunkline-client": ROOT / "clients" / "python",
}
#: Building and installing run pip, which may have to download.
PIP_TIMEOUT_S = 300.0


def run(*command: str, cwd: Path = ROOT, **env: str) -> str:
    """Run a command; return what it printed, or fail with what it wrote to stderr."""
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
    """The wheel of a distribution, built from its source archive as `python -m build` does."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(wheels), str(PROJECTS[name]))
    (wheel,) = wheels.glob(f"{name.replace('-', '_')}-*.whl")
    return wheel


class Environment:
    """An empty virtual environment with one wheel, and what pip installs for it."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=os.name != "nt")
        self.bin = folder / "bin"
        self._folder = folder
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python")]
        options = ["--quiet", "--disable-pip-version-check", "--constraint", str(ROOT / "constraints.txt")]
        run(*pip, "install", *options, "--find-links", str(wheel.parent), str(wheel))

    def python(self, program: str) -> str:
        """Run a program in the environment, away from the repository; return what it printed."""
        return run(str(self.bin / "python"), "-I", "-c", program, cwd=self._folder)

    def command(self, name: str, *arguments: str) -> str:
        """Run a command that the wheel installed; return what it printed."""
        return run(str(self.bin / name), *arguments, cwd=self._folder)

    def packages(self) -> set[str]:
        """Packages of this project that can be imported."""
        names = ["trunkline", "trunkline_runtime", "trunkline_edge", "trunkline_router", "trunkline_client"]
        found = self.python(
            f"from importlib.util import find_spec; print(*[n for n in {names!r} if find_spec(n)])"
        )
        return set(found.split())

    def import_all(self, package: str) -> None:
        """Import every module of a package; fails if a dependency is not declared."""
        self.python(
            f"import importlib, pkgutil, {package} as package; "
            "[importlib.import_module(module.name)"
            f" for module in pkgutil.walk_packages(package.__path__, '{package}.')"
            " if not module.name.endswith('__main__')]"
        )
