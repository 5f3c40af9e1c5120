"""The variables in docs/security.md exist, and its TLS example works."""

from __future__ import annotations

import re
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.request import urlopen

from trunkline_edge.settings import EdgeSettings
from trunkline_router.settings import RouterSettings

from tests.support.patience import patient
from tests.support.processes import ROOT, edge_process, router_process

if TYPE_CHECKING:
    from pathlib import Path

PAGE = (ROOT / "docs" / "security.md").read_text()
OF_CLIENTS = {"TRUNKLINE_CA", "TRUNKLINE_TLS"}


def variables(settings: type[RouterSettings | EdgeSettings]) -> set[str]:
    return {f"TRUNKLINE_{name.upper()}" for name in settings.model_fields}


def test_every_variable_on_the_page_is_one() -> None:
    named = set(re.findall(r"\bTRUNKLINE_[A-Z_]+\b", PAGE))
    assert named <= variables(RouterSettings) | variables(EdgeSettings) | OF_CLIENTS


def test_all_settings_about_connections_are_on_the_page() -> None:
    of_router, of_edge = PAGE.partition("## Settings")[2].split("| the edge's | |")
    about = re.compile(r"TRUNKLINE_(TLS_|LINK_(KEY|LISTEN)|INSECURE_|ROUTER_(CA|CERT|KEY|NAME|TLS))")
    for settings, table in ((RouterSettings, of_router), (EdgeSettings, of_edge)):
        for name in filter(about.match, variables(settings)):
            assert f"`{name}`" in table


def exported(text: str) -> dict[str, str]:
    """Return the variables that a text has a shell export."""
    return dict(re.findall(r"(TRUNKLINE_\w+)=(\S+)", text))


def test_what_make_certs_prints_makes_a_router_and_an_edge_that_speak_tls(tmp_path: Path) -> None:
    printed = subprocess.run(
        [sys.executable, "deploy/certs.py"],
        cwd=ROOT,
        env={"CERTS": str(tmp_path / "certs")},
        capture_output=True,
        text=True,
        timeout=patient(30),
        check=True,
    ).stdout
    of_router, of_edge, _ = printed.split("\n\n")
    router_env = exported(of_router) | {"TRUNKLINE_LINK_LISTEN": "127.0.0.1:0"}
    with router_process(tmp_path, **router_env) as router:
        (links,) = re.findall(r'"links": "([^"]+)"', router.stderr)
        with edge_process(links, **(exported(of_edge) | {"TRUNKLINE_ROUTER": links})) as edge:
            trusting = ssl.create_default_context(cafile=tmp_path / "certs" / "ca.pem")
            port = edge.address.rpartition(":")[2]
            with urlopen(
                f"https://localhost:{port}/healthz", context=trusting, timeout=patient(10)
            ) as answer:
                assert answer.status == 200
