"""Each distribution builds a wheel that installs and runs on its own in an empty environment."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.distributions.installed import PROJECTS, Environment, build
from tests.support.processes import Process

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Wheel of each distribution, in one directory."""
    folder = tmp_path_factory.mktemp("wheels")
    return {name: build(name, folder) for name in PROJECTS}


def top_level(wheel: Path) -> set[str]:
    """Return the names that a wheel installs into site-packages, without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name.split("/")[0] for name in archive.namelist()}
    return {name for name in names if not name.endswith(".dist-info")}


def test_each_wheel_installs_one_name_into_site_packages(wheels: dict[str, Path]) -> None:
    assert {name: top_level(wheel) for name, wheel in wheels.items()} == {
        "trunkline-contract": {"trunkline"},
        "trunkline-runtime": {"trunkline_runtime"},
        "trunkline-edge": {"trunkline_edge"},
        "trunkline-router": {"trunkline_router"},
        "trunkline-client": {"trunkline_client"},
    }


def test_the_contract_is_usable_on_its_own(wheels: dict[str, Path], tmp_path: Path) -> None:
    installed = Environment(tmp_path, wheels["trunkline-contract"])
    program = (
        "from trunkline.v1 import catalogue, broadcast_service_pb2_grpc; print(len(catalogue.ENTRIES) > 9)"
    )
    assert installed.python(program) == "True\n"
    installed.import_all("trunkline")
    assert installed.packages() == {"trunkline"}


def test_the_client_installs_no_server(wheels: dict[str, Path], tmp_path: Path) -> None:
    installed = Environment(tmp_path, wheels["trunkline-client"])
    assert installed.python("from trunkline_client import Backend, Client, Worker; print('ok')") == "ok\n"
    assert "chat" in installed.command("trunkline", "--help")
    installed.import_all("trunkline_client")
    assert installed.packages() == {"trunkline", "trunkline_client"}


def test_router_and_edge_run_from_their_wheels(wheels: dict[str, Path], tmp_path: Path) -> None:
    routers = Environment(tmp_path / "router", wheels["trunkline-router"])
    edges = Environment(tmp_path / "edge", wheels["trunkline-edge"])
    assert routers.packages() == {"trunkline", "trunkline_runtime", "trunkline_router"}
    assert edges.packages() == {"trunkline", "trunkline_runtime", "trunkline_edge"}
    routers.import_all("trunkline_router", without="trunkline_router.log.postgres")
    edges.import_all("trunkline_edge")
    assert "tenant" in routers.command("trunkline-router", "--help")
    clean = {"PYTHONPATH": ""}
    router_env = {"TRUNKLINE_ROUTER_LISTEN": "127.0.0.1:0", "TRUNKLINE_DATA_DIR": str(tmp_path / "data")}
    serve = [str(routers.bin / "trunkline-router"), "serve"]
    with Process.start(serve, clean | router_env, cwd=tmp_path) as router:
        edge_env = {"TRUNKLINE_EDGE_LISTEN": "127.0.0.1:0", "TRUNKLINE_ROUTER": router.address}
        serve = [str(edges.bin / "trunkline-edge"), "serve"]
        with Process.start(serve, clean | edge_env, cwd=tmp_path) as edge:
            assert edge.terminate() == 0
        assert router.terminate() == 0
    routers.add_extra("postgres")
    routers.import_all("trunkline_router")
