"""Authentication of links: an edge without credentials is rejected, and one log line names the setting."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.e2e.fleet import fleet_of
from tests.e2e.link_log import WRITE_INTERRUPTED, link_problems
from tests.e2e.link_settings import edge_link_env, link_address, router_link_env
from tests.support.certificates import ELSEWHERE, Certificates, tls_env
from tests.support.patience import patient
from tests.support.processes import ROOT, edge_process, environment, router_process

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.long

KEY = "the-key-that-the-links-need"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("others"), "Theirs")


async def problem_of(router: str, env: dict[str, str]) -> str:
    """Return the only line that an edge logs about its link."""
    # gRPC may lose the reason if a stream is rejected during a write.
    (problem,) = {each for each in await link_problems(router, **env) if each != WRITE_INTERRUPTED}
    return problem


def test_an_edge_with_the_link_key_links(tmp_path: Path) -> None:
    with fleet_of(tmp_path, edges=0, TRUNKLINE_LINK_KEY=KEY) as fleet:
        fleet.start_edge(TRUNKLINE_LINK_KEY=KEY)


async def test_an_edge_with_a_wrong_or_missing_link_key_is_rejected(tmp_path: Path) -> None:
    with router_process(tmp_path, TRUNKLINE_LINK_KEY=KEY) as router:
        wrong = await problem_of(router.address, {"TRUNKLINE_LINK_KEY": f"{KEY}!"})
        missing = await problem_of(router.address, {})
        assert "TRUNKLINE_LINK_KEY must be the one of the router" in wrong
        assert "TRUNKLINE_LINK_KEY as it is there" in missing
        assert KEY not in wrong + missing + router.stderr


async def test_a_link_port_rejects_edges_without_a_client_certificate(
    tmp_path: Path, ours: Certificates, others: Certificates
) -> None:
    with router_process(tmp_path, **router_link_env(ours)) as router:
        links = link_address(router)
        assert "every certificate by TRUNKLINE_TLS_CLIENT_CA is an edge" in router.stderr
        trusting = {"TRUNKLINE_ROUTER_CA": str(ours.ca)}
        for credentials in ({}, tls_env("ROUTER", others.client), tls_env("ROUTER", ours.edge)):
            assert "set TRUNKLINE_ROUTER_CERT" in await problem_of(links, trusting | credentials)
        # The other port requires no certificate, and no link key is set.
        problem = await problem_of(router.address, edge_link_env(ours, router.address))
        assert "set to its port for links, TRUNKLINE_LINK_LISTEN" in problem
        with edge_process(links, **edge_link_env(ours, links)):
            pass


async def test_a_link_port_with_names_accepts_edges_by_name_and_id(
    tmp_path: Path, ours: Certificates
) -> None:
    spiffe = "spiffe://prod/edge/a"
    names = {"TRUNKLINE_LINK_NAMES": "edge, spiffe://prod/edge/*"}
    with router_process(tmp_path, **router_link_env(ours), **names) as router:
        links = link_address(router)
        assert "every certificate" not in router.stderr
        trusting = {"TRUNKLINE_ROUTER_CA": str(ours.ca)}
        for foreign in ("worker", "edge.internal", "spiffe://prod/worker/a"):
            credentials = tls_env("ROUTER", ours.client_named(foreign))
            problem = await problem_of(links, trusting | credentials | {"TRUNKLINE_EDGE_ID": "edge"})
            assert "TRUNKLINE_LINK_NAMES" in problem
        by_name = trusting | tls_env("ROUTER", ours.client_named(spiffe))
        problem = await problem_of(links, by_name | {"TRUNKLINE_EDGE_ID": "edge"})
        assert "TRUNKLINE_EDGE_ID" in problem
        assert spiffe in problem
        # Without an id the edge takes one that its certificate allows.
        with (
            edge_process(links, **trusting, **tls_env("ROUTER", ours.client)),
            edge_process(links, **by_name, TRUNKLINE_EDGE_ID=f"{spiffe}#1") as edge,
        ):
            # A call by HTTP takes the same proof.
            url = f"http://{edge.address}/v1/tenants/demo/connections"
            async with httpx.AsyncClient(trust_env=False) as http:
                assert (await http.get(url)).status_code == 200


async def test_beside_a_link_port_the_other_port_accepts_the_link_key(
    tmp_path: Path, ours: Certificates
) -> None:
    with router_process(tmp_path, **router_link_env(ours), TRUNKLINE_LINK_KEY=KEY) as router:
        by_key = {"TRUNKLINE_ROUTER_CA": str(ours.ca), "TRUNKLINE_LINK_KEY": KEY}
        with edge_process(router.address, **by_key):
            pass


async def test_an_edge_reports_problems_with_the_tls_of_its_router(
    tmp_path: Path, ours: Certificates, others: Certificates
) -> None:
    trusting = {"TRUNKLINE_ROUTER_CA": str(ours.ca)}
    with router_process(tmp_path / "tls", **tls_env("TLS", ours.router)) as router:
        untrusted = await problem_of(router.address, {"TRUNKLINE_ROUTER_CA": str(others.ca)})
        assert "TRUNKLINE_ROUTER_CA must name its authority" in untrusted
        assert "not trusted" in await problem_of(router.address, {"TRUNKLINE_ROUTER_TLS": "true"})
        assert "if it speaks TLS, set TRUNKLINE_ROUTER_CA" in await problem_of(router.address, {})
    with router_process(tmp_path / "plain") as router:
        assert "does not speak TLS there" in await problem_of(router.address, trusting)
    with router_process(tmp_path / "elsewhere", **tls_env("TLS", ours.elsewhere)) as router:
        assert "TRUNKLINE_ROUTER_NAME" in await problem_of(router.address, trusting)
        with edge_process(router.address, **trusting, TRUNKLINE_ROUTER_NAME=ELSEWHERE):
            pass


def run_to_exit(name: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a process that must exit by itself."""
    arguments = [sys.executable, "-m", f"trunkline_{name}", "serve"]
    return subprocess.run(
        arguments,
        cwd=ROOT,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=patient(30),
        check=False,
    )


def test_a_router_on_a_public_address_refuses_to_start_without_link_authentication(tmp_path: Path) -> None:
    data = tmp_path / "data"
    done = run_to_exit("router", TRUNKLINE_ROUTER_LISTEN="0.0.0.0:0", TRUNKLINE_DATA_DIR=str(data))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    for way in ("TRUNKLINE_LINK_KEY", "TRUNKLINE_LINK_LISTEN", "TRUNKLINE_INSECURE_LINKS=true"):
        assert way in line
    assert not data.exists()


def test_a_router_on_a_public_address_starts_with_insecure_links_allowed(tmp_path: Path) -> None:
    env = {"TRUNKLINE_ROUTER_LISTEN": "0.0.0.0:0", "TRUNKLINE_INSECURE_LINKS": "true"}
    with router_process(tmp_path, **env) as router:
        port = router.address.rpartition(":")[2]
        with edge_process(f"127.0.0.1:{port}"):
            assert "gRPC is unencrypted" in router.stderr


def test_an_edge_with_an_incomplete_pair_of_settings_reports_it() -> None:
    for variable in ("TRUNKLINE_ROUTER_CERT", "TRUNKLINE_TLS_KEY"):
        done = run_to_exit("edge", TRUNKLINE_EDGE_LISTEN="127.0.0.1:0", **{variable: "x.pem"})
        assert done.returncode == 1
        assert variable in done.stderr
        assert "must be set together" in done.stderr


def test_a_short_link_key_is_rejected_and_link_keys_are_never_logged() -> None:
    done = run_to_exit("router", TRUNKLINE_LINK_KEY="short-key")
    assert done.returncode == 2
    assert "TRUNKLINE_LINK_KEY" in done.stderr
    assert "short-key" not in done.stderr
    for name in ("router", "edge"):
        secrets = {"TRUNKLINE_LINK_KEY": KEY, "TRUNKLINE_OPERATOR_KEY": "the-operators-own-key"}
        listing = subprocess.run(
            [sys.executable, "-m", f"trunkline_{name}", "show-config"],
            cwd=ROOT,
            env=environment(secrets | {"COLUMNS": "240"}),
            capture_output=True,
            text=True,
            timeout=patient(30),
            check=True,
        )
        assert "TRUNKLINE_LINK_KEY" in listing.stdout
        assert not [secret for secret in secrets.values() if secret in listing.stdout]
