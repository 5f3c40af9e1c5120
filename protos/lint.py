"""Check the contract: format, style and compatibility.

    python protos/lint.py [REF]

runs three checks of `buf`: format, lint, and breaking changes (WIRE_JSON, see buf.yaml) since git's
REF. The default is the newest release (tag ``v*``) in the history of the checked-out commit. If there
is none, as before the first release or in a shallow clone, nothing is compared.

Requires `buf` (buf-bin) beside the interpreter or on PATH, and no network: buf reads descriptor sets
that protoc compiled, so it resolves no imports.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path

from compile import PROTOS, include_paths

ROOT = PROTOS.parent
CONFIG = str(PROTOS / "buf.yaml")


def main(arguments: list[str]) -> int:
    """Run all checks. Returns the exit code."""
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        raise SystemExit(__doc__)
    contract = ROOT / "build" / "contract.binpb"
    contract.parent.mkdir(exist_ok=True)
    describe(PROTOS, contract)
    passed = [
        buf("format", str(PROTOS), "--diff", "--exit-code"),
        buf("lint", str(contract), "--config", CONFIG),
    ]
    base = arguments[0] if arguments else newest_release()
    if base:
        with tempfile.TemporaryDirectory() as folder:
            old = Path(folder) / "contract.binpb"
            describe(checked_out(base, Path(folder)), old)
            passed.append(buf("breaking", str(contract), "--against", str(old), "--config", CONFIG))
    return 0 if all(passed) else 1


def describe(protos: Path, out: Path) -> None:
    """Write the descriptor set of the contract in `protos`, with imports and comments, to `out`."""
    _, *imports = include_paths()
    command = [sys.executable, "-m", "grpc_tools.protoc", *(f"-I{path}" for path in [protos, *imports])]
    options = ["--include_imports", "--include_source_info", f"--descriptor_set_out={out}"]
    files = sorted(str(path.relative_to(protos)) for path in protos.glob("trunkline/**/*.proto"))
    if subprocess.run([*command, *options, *files], check=False).returncode:
        raise SystemExit("protoc failed; its message stands above")


def buf(*arguments: str) -> bool:
    """Run buf, which prints its findings. Returns True if there are none."""
    found = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
    if found is None:
        raise SystemExit("lint.py needs buf: pip install buf-bin")
    return subprocess.run([found, *arguments], check=False).returncode == 0


def newest_release() -> str:
    """Return the newest tag ``v*`` in the history of HEAD; empty if there is none, or no git."""
    if shutil.which("git") is None:
        return ""
    describe_tag = ["git", "-C", str(ROOT), "describe", "--tags", "--abbrev=0", "--match=v*"]
    return subprocess.run(describe_tag, check=False, capture_output=True, text=True).stdout.strip()


def checked_out(ref: str, folder: Path) -> Path:
    """Write the folder `protos` as of `ref` below `folder`, and return its path."""
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", "--format=zip", ref, "protos"], check=False, capture_output=True
    )
    if archive.returncode:
        raise SystemExit(f"no protos/ in {ref}: {archive.stderr.decode().strip()}")
    with zipfile.ZipFile(BytesIO(archive.stdout)) as files:
        files.extractall(folder)
    return folder / "protos"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
