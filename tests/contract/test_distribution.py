"""The distribution trunkline-contract builds with the tools that the repository is tested with."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONTRACT = tomllib.loads((ROOT / "protos" / "pyproject.toml").read_text())
WORKSPACE = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pinned(requirements: list[str]) -> set[str]:
    """Requirements with an exact version."""
    return {requirement for requirement in requirements if "==" in requirement}


def test_generators_are_pinned_to_the_versions_of_the_workspace() -> None:
    generators = pinned(CONTRACT["build-system"]["requires"])
    assert {name.partition("==")[0] for name in generators} == {"grpcio-tools", "mypy-protobuf"}
    assert generators <= pinned(WORKSPACE["project"]["optional-dependencies"]["dev"])


def test_stubs_require_a_grpcio_of_the_generator_s_version() -> None:
    (tools,) = (name for name in CONTRACT["build-system"]["requires"] if name.startswith("grpcio-tools"))
    (grpcio,) = (name for name in CONTRACT["project"]["dependencies"] if name.startswith("grpcio>"))
    assert grpcio.startswith(f"grpcio>={tools.partition('==')[2]},")


def test_the_package_contains_the_sources_of_the_contract() -> None:
    sources = {path.name for path in (ROOT / "protos" / "trunkline" / "v1").iterdir() if path.is_file()}
    packaged = {path.name for path in files("trunkline.v1").iterdir()}
    assert sources <= packaged
