"""protos/ and its README are sufficient to generate stubs, call a router and serve an agent.

`make stubs-check` runs the other languages of the README.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import google.protobuf
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from trunkline.v1.catalogue import CONTRACT_MINOR

from tests.contract.readme_programs import TOOLS, build, check, section
from tests.support.processes import ROOT, router_process

pytestmark = pytest.mark.io


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
    build("Python", folder)
    return folder


def test_stubs_made_as_the_readme_says_import_without_anything_else_of_trunkline(folder: Path) -> None:
    services = sorted(path.stem for path in (ROOT / "protos" / "trunkline" / "v1").glob("*.proto"))
    imports = "\n".join(f"from trunkline.v1 import {name}_pb2, {name}_pb2_grpc" for name in services)
    where = "import trunkline.v1; print(*trunkline.v1.__path__)"
    assert run_python(f"{imports}\n{where}", folder).split() == [
        str(folder / "generated" / "trunkline" / "v1")
    ]


def test_the_readme_s_descriptor_set_holds_the_contract_and_all_it_imports(folder: Path) -> None:
    build("Rust", folder)
    files = FileDescriptorSet.FromString((folder / "contract.binpb").read_bytes()).file
    names = {file.name for file in files}
    assert {dependency for file in files for dependency in file.dependency} < names
    assert "trunkline/v1/broadcast_service.proto" in names


def test_the_readme_s_program_broadcasts_once_and_answers_a_message(folder: Path, tmp_path: Path) -> None:
    with router_process(tmp_path) as router:
        assert check("Python", folder, router.address) == check("Python", folder, router.address)


def test_the_readme_has_commands_and_a_program_for_each_language() -> None:
    for language in TOOLS:
        commands, files = section(language)
        assert commands, language
        assert any("The parrot is here" in text and "attached" in text for text in files.values()), language


def test_the_readme_s_number_of_the_contract_s_version_is_current() -> None:
    [stated] = re.findall(r"CONTRACT_MINOR: u32 = (\d+);", section("Rust").files["src/main.rs"])
    assert int(stated) == CONTRACT_MINOR
