"""The command line finds a router and a key, or explains what to set."""

from __future__ import annotations

import datetime
import ipaddress
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1.tenant_pb2 import ClientAuth, Tenant, TenantSettings, VerificationKey
from trunkline.v1.tenant_service_pb2 import (
    GetTenantRequest,
    GetTenantResponse,
    ListTenantsRequest,
    ListTenantsResponse,
    UpdateTenantRequest,
    UpdateTenantResponse,
)
from trunkline.v1.tenant_service_pb2_grpc import TenantServiceServicer, add_TenantServiceServicer_to_server
from trunkline_router.cli.units import format_bytes, format_seconds, parse_bytes, parse_seconds

from tests.router.cli.command_line import OPERATOR, CommandLine
from tests.support.patience import patient
from tests.support.processes import ROOT, Process, environment, router_process

NOWHERE = CommandLine("127.0.0.1:1")


def test_the_generated_operator_key_is_found_in_the_data_folder(tmp_path: Path) -> None:
    env = {"TRUNKLINE_OPERATOR_KEY": ""}
    with router_process(tmp_path / "data", TRUNKLINE_OPERATOR_KEY="") as router:
        tenant = CommandLine(router.address)
        assert "demo" in tenant("list", TRUNKLINE_DATA_DIR=str(tmp_path / "data"), **env).out
        problem = tenant.refusal("list", TRUNKLINE_DATA_DIR=str(tmp_path), **env)
    assert f"cannot read {tmp_path / 'operator.key'} (No such file or directory)" in problem
    assert "TRUNKLINE_OPERATOR_KEY" in problem


def test_the_default_data_folder_is_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    problem = NOWHERE.refusal("list", TRUNKLINE_OPERATOR_KEY="")
    assert problem.startswith("No operator key: cannot read data/operator.key")


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel", "\x7f"])
def test_an_invalid_key_option_is_rejected_without_being_printed(key: str, tmp_path: Path) -> None:
    assert (
        NOWHERE.refusal("list", "--key", key) == "The value of --key or TRUNKLINE_OPERATOR_KEY is not a key"
    )
    (tmp_path / "operator.key").write_text(key, encoding="latin-1")
    problem = NOWHERE.refusal("list", TRUNKLINE_OPERATOR_KEY="", TRUNKLINE_DATA_DIR=str(tmp_path))
    assert "operator.key" in problem
    assert key not in problem


def test_a_wrong_key_is_refused(tenant: CommandLine) -> None:
    problem = tenant.refusal("list", "--key", "not-the-operators-key")
    assert problem == "Authentication failed: the key is not valid (UNAUTHORIZED)"


def test_an_unreachable_router_is_reported_in_one_line() -> None:
    problem = NOWHERE.refusal("list")
    assert problem.startswith("Cannot reach a router at 127.0.0.1:1: ")
    assert "Connection refused" in problem
    assert problem.endswith("Set --router or TRUNKLINE_ROUTER to use another address.")


def test_a_list_of_routers_without_an_owner_is_reported_with_the_problem_of_each() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    health = HealthServicer()
    health.set("trunkline.v1.TenantService", HealthCheckResponse.NOT_SERVING)
    add_HealthServicer_to_server(health, server)
    standby = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        problem = CommandLine(f"127.0.0.1:1,{standby}").refusal("list")
    finally:
        server.stop(None)
    assert problem.startswith("No router owns the log; try again. 127.0.0.1:1: ")
    assert "Connection refused" in problem
    assert problem.endswith(f"; {standby}: it is a standby, or its database is away")


def test_of_several_routers_the_one_that_owns_the_log_is_called(router: Process) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    standby = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        assert "demo" in CommandLine(f"{standby},{router.address}")("list").out
    finally:
        server.stop(None)


@pytest.mark.parametrize(
    ("routers", "problem"),
    [("a:1,", "--router has an empty address"), ("a:1,a:1", "--router names a router twice: a:1 and a:1")],
)
def test_a_wrong_list_of_routers_is_refused(routers: str, problem: str) -> None:
    assert CommandLine(routers).refusal("list").startswith(problem)


def test_a_server_without_tenant_service_is_reported() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        problem = CommandLine(f"127.0.0.1:{port}").refusal("list")
    finally:
        server.stop(None)
    assert "has no TenantService" in problem


SETTINGS = TenantSettings(
    client_auth=ClientAuth(
        keys=[
            VerificationKey(kid="shared", algorithm="HS256", jwk='{"kty": "oct"}'),
            VerificationKey(kid="public", algorithm="EdDSA", jwk="{}"),
        ]
    )
)


class _RecordingService(TenantServiceServicer):
    """Records metadata and updates."""

    def __init__(self) -> None:
        self.metadata: dict[str, str | bytes] = {}
        self.updated: list[UpdateTenantRequest] = []

    def ListTenants(self, request: ListTenantsRequest, context: Any) -> Any:  # noqa: N802
        self.metadata = dict(context.invocation_metadata())
        return ListTenantsResponse()

    def GetTenant(self, request: GetTenantRequest, context: Any) -> Any:  # noqa: N802
        return GetTenantResponse(tenant=Tenant(tenant=request.tenant, settings=SETTINGS))

    def UpdateTenant(self, request: UpdateTenantRequest, context: Any) -> Any:  # noqa: N802
        self.updated.append(request)
        return UpdateTenantResponse(tenant=Tenant(tenant=request.tenant, settings=request.settings))


def test_an_update_sends_only_changed_fields_and_no_secret() -> None:
    service, server = _RecordingService(), grpc.server(ThreadPoolExecutor(1))
    add_TenantServiceServicer_to_server(service, server)  # type: ignore[arg-type]
    tenant = CommandLine(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    try:
        tenant("set", "acme", "--agent", "helper", "--limit", "connections=5")
        tenant("set", "acme", "--open-to", "nobody", "--issuer", "me")
        tenant("set", "acme", "--agent", "")
    finally:
        server.stop(None)
    first, second = service.updated
    assert list(first.update_mask.paths) == ["limits", "default_agent"]
    assert list(second.update_mask.paths) == ["open_to", "client_auth"]
    assert [key.jwk for key in second.settings.client_auth.keys] == ["", "{}"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    """A private key and the file of its self-signed certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a router")])
    now = datetime.datetime.now(datetime.UTC)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "ca.pem"
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(pem, form, plain), file


@pytest.fixture
def encrypted(certificate: tuple[bytes, Path]) -> Iterator[tuple[str, Path, _RecordingService]]:
    """The address of a server with TLS, its certificate, and its service."""
    key, file = certificate
    service, server = _RecordingService(), grpc.server(ThreadPoolExecutor(1))
    add_TenantServiceServicer_to_server(service, server)  # type: ignore[arg-type]
    credentials = grpc.ssl_server_credentials([(key, file.read_bytes())])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield f"127.0.0.1:{port}", file, service
    server.stop(None)


def test_a_router_with_tls_is_verified_by_its_certificate(
    encrypted: tuple[str, Path, _RecordingService], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, file, service = encrypted
    tenant = CommandLine(address)
    assert tenant("list", "--ca", str(file)).out == "There are no tenants.\n"
    assert service.metadata["authorization"] == f"Bearer {OPERATOR}"
    assert tenant.refusal("list").startswith(f"Cannot reach a router at {address}")
    missing = tmp_path / "none.pem"
    assert tenant.refusal("list", "--ca", str(missing)) == f"--ca: {missing}: No such file or directory"
    file_of_none = tmp_path / "empty.pem"
    file_of_none.write_text("none")
    assert tenant.refusal("list", "--ca", str(file_of_none)).startswith("Cannot reach a router at")
    monkeypatch.setenv("TRUNKLINE_CA", str(file))
    assert tenant("list").out == "There are no tenants.\n"


def test_tenant_is_a_command_of_the_router(router: Process) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trunkline_router", "tenant", "list"],
        env=environment({"TRUNKLINE_ROUTER": router.address, "TRUNKLINE_OPERATOR_KEY": OPERATOR}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=patient(20),
        check=True,
    )
    assert "demo" in done.stdout
    assert done.stderr == ""


def test_a_router_starts_without_importing_the_commands() -> None:
    commands = "trunkline_router.cli.command_tree"
    program = (
        f"import sys, trunkline_router.__main__, trunkline_router.app; sys.exit({commands!r} in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=patient(20), check=True)


def test_the_help_imports_neither_the_settings_nor_cryptography() -> None:
    """Both take longer to import than everything else that the help needs."""
    program = """
import sys
from typer.testing import CliRunner
from trunkline_router.cli.command_tree import app
assert "signing-key" in CliRunner().invoke(app, ["--help"]).output
assert not {"cryptography", "joserfc", "pydantic_settings", "structlog"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=patient(20), check=True)


@given(st.integers(1, 10**11))
def test_durations_and_sizes_are_formatted_as_they_are_parsed(value: int) -> None:
    assert parse_seconds(format_seconds(value), "") == value
    assert parse_bytes(format_bytes(value), "") == value
