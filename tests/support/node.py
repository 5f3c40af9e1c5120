"""Node and the JavaScript packages of tests/node/package.json, as `.ci/run` installs them to build/node.

    node = node_command("ai")
    process = Process.start([*node, "tests/node/chat.mjs", url], ready=bool)

A test whose program or package is not installed is skipped, and the reason names it. A script may import the
installed packages by name from anywhere in the tree; TypeScript runs without a build.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Oldest version of Node that the packages support.
MIN_NODE = 22
INSTALLED = ROOT / "build" / "node"
UNPACKED_CHROMIUM = ROOT / "build" / "chromium"

_MANIFEST = ROOT / "tests" / "node" / "package.json"
_HOOKS = ROOT / "tests" / "node" / "installed_packages.mjs"


def node_command(*packages: str) -> list[str]:
    """Return the command that runs a script with Node; skip the test if Node or a package is missing."""
    program = newest_node()
    if not program:
        pytest.skip(f"Node {MIN_NODE} or newer is not installed")
    for package in packages:
        package_folder(package)
    return [program, "--import", _HOOKS.as_uri()]


def package_folder(name: str) -> Path:
    """Return the folder of an installed package; skip the test if it is missing or of another version."""
    folder = INSTALLED / "node_modules" / name
    expected = json.loads(_MANIFEST.read_text())["dependencies"][name]
    if not (folder / "package.json").exists():
        pytest.skip(f"the npm package {name} is not installed: .ci/run installs it")
    found = json.loads((folder / "package.json").read_text())["version"]
    if found != expected:
        pytest.skip(f"the npm package {name} is {found}, not {expected}: .ci/run installs it")
    return folder


def typescript_program(example: str) -> list[str]:
    """Return the command of a folder in examples/, generated and type-checked.

    Skips the test as `node_command` does.
    """
    manifest = json.loads((ROOT / "examples" / example / "package.json").read_text())
    command = node_command(*manifest["dependencies"], *manifest["devDependencies"])
    folder = ROOT / "build" / example
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "examples" / example, folder, ignore=shutil.ignore_patterns("node_modules"))
    (folder / "node_modules").symlink_to(INSTALLED / "node_modules")
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for step in (["sh", "generate.sh"], ["node_modules/.bin/tsc"]):
        done = subprocess.run(
            step,
            cwd=folder,
            env={**os.environ, "PATH": programs},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{step}:\n{done.stderr}{done.stdout}"
    return [command[0], str(folder / "worker.ts")]


class Chromium(NamedTuple):
    """A browser for playwright-core."""

    program: str
    #: Variables that it needs.
    env: Mapping[str, str]


def chromium() -> Chromium:
    """Return the installed browser, or the one that `.ci/run` unpacked; skip the test without one."""
    if installed := shutil.which("chromium"):
        return Chromium(installed, {})
    program = UNPACKED_CHROMIUM / "usr" / "lib" / "chromium" / "chromium"
    if not program.exists():
        pytest.skip("chromium is not installed")
    folders = sorted({library.parent for library in (UNPACKED_CHROMIUM / "usr" / "lib").rglob("*.so*")})
    libraries = ":".join(map(str, folders))
    return Chromium(str(program), {"LD_LIBRARY_PATH": libraries})


@cache
def newest_node() -> str:
    """Return the program of a Node that is new enough; empty if none is installed."""
    for candidate in (INSTALLED / "node_modules" / "node" / "bin" / "node", shutil.which("node")):
        if candidate is None or not Path(candidate).exists():
            continue
        version = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False)
        if version.returncode == 0 and int(version.stdout.strip().lstrip("v").partition(".")[0]) >= MIN_NODE:
            return str(candidate)
    return ""
