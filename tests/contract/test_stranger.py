"""protos/ and its README are sufficient to generate stubs and call a router."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import google.protobuf
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tests.support.processes import ROOT, router_process

pytestmark = pytest.mark.io


def blocks(language: str) -> list[str]:
    """The README's fenced blocks in one language, in order."""
    readme = (ROOT / "protos" / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)


def run_shell(script: str, folder: Path) -> None:
    """Run a script in a shell whose `python` is this interpreter."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-euc", script],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def run_python(source: str, folder: Path) -> str:
    """Run Python with the stubs in `folder`/generated and no other part of Trunkline."""
    site_packages = Path(google.protobuf.__file__).parents[2]
    # Without `site` Python ignores the editable install's .pth file but still finds the packages beside it.
    env = {**os.environ, "PYTHONPATH": f"{folder / 'generated'}{os.pathsep}{site_packages}"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", source], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of protos/, and the output of the README's commands beside it."""
    folder = tmp_path_factory.mktemp("stranger")
    shutil.copytree(ROOT / "protos", folder / "protos", ignore=shutil.ignore_patterns("__pycache__"))
    pip_install, generate, *_ = blocks("sh")
    assert pip_install.startswith("pip install ")
    run_shell(generate, folder)
    return folder


def test_stubs_made_as_the_readme_says_import_without_anything_else_of_trunkline(folder: Path) -> None:
    services = sorted(path.stem for path in (ROOT / "protos" / "trunkline" / "v1").glob("*.proto"))
    imports = "\n".join(f"from trunkline.v1 import {name}_pb2, {name}_pb2_grpc" for name in services)
    where = "import trunkline.v1; print(*trunkline.v1.__path__)"
    assert run_python(f"{imports}\n{where}", folder).split() == [
        str(folder / "generated" / "trunkline" / "v1")
    ]


def test_the_readme_s_descriptor_set_holds_the_contract_and_all_it_imports(folder: Path) -> None:
    run_shell(blocks("sh")[2], folder)
    files = FileDescriptorSet.FromString((folder / "contract.binpb").read_bytes()).file
    names = {file.name for file in files}
    assert {dependency for file in files for dependency in file.dependency} < names
    assert "trunkline/v1/broadcast_service.proto" in names


def test_the_readme_s_ten_lines_broadcast_and_repeated_get_the_same_answer(
    folder: Path, tmp_path: Path
) -> None:
    (lines,) = blocks("python")
    assert "127.0.0.1:50051" in lines
    with router_process(tmp_path) as router:
        source = lines.replace("127.0.0.1:50051", router.address)
        first = run_python(source, folder)
        message_id, seq, connections = first.split()
        assert message_id
        assert (seq, connections) == ("1", "0")
        assert run_python(source, folder) == first
