"""The commands of docs/postgres.md work, with exactly the rights that it grants."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from trunkline_router.settings import RouterSettings

from tests.e2e.postgres.standby_fleet import owns_log
from tests.support.patience import patient
from tests.support.postgres import DATABASE, ROLE, PostgresServer
from tests.support.postgres_binaries import remove_folder, run, scratch_folder
from tests.support.postgres_template import SUPERUSER
from tests.support.processes import (
    ROOT,
    Process,
    children,
    ended,
    environment,
    guard,
    linux,
    router_process,
)

PAGE = (ROOT / "docs" / "postgres.md").read_text()
#: The statements of the page, in its order.
SET_UP, OTHER_ROLE, QUERY, ANALYST, VACUUM = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
START, TAKEOVER, BACKUP, RESTORE, *_ = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
PASSWORD = "change-me"
VARIABLE = '"$TRUNKLINE_DATABASE_URL"'


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server without any role or database of ours, but those of the page."""
    with PostgresServer.create() as started:
        psql(started, f"DROP DATABASE {DATABASE};\nDROP ROLE {ROLE};\n{SET_UP}", "postgres")
        yield started


def psql(server: PostgresServer, statements: str, database: str = DATABASE, user: str = SUPERUSER) -> str:
    """Run statements as a user, as psql does; return the rows."""
    dsn = f"postgresql://{user}@{server.address}/{database}"
    return run(server.version, "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", dsn, stdin=statements)


def url(server: PostgresServer, user: str = f"trunkline:{PASSWORD}", database: str = "trunkline") -> str:
    return f"postgresql://{user}@{server.address}/{database}"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def shell(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run bash with the commands of this checkout, and end all that it started."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with (
        (folder / "output").open("w") as output,
        subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=environment({"PATH": path}),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as started,
    ):
        guard().add(started.pid)
        try:
            yield started
        finally:
            # The owner gives the log back: the next test need not wait for its lease.
            processes = children(started.pid)
            os.killpg(started.pid, signal.SIGTERM)
            if not all(ended(process) for process in processes):
                os.killpg(started.pid, signal.SIGKILL)
            guard().forget(started.pid)


def await_output(folder: Path, wanted: str, count: int = 1) -> str:
    """Wait until the shell's output contains a pattern so often; return it."""
    deadline = time.monotonic() + patient(30)
    while len(re.findall(wanted, output := (folder / "output").read_text())) < count:
        assert time.monotonic() < deadline, f"no {wanted!r} in:\n{output}"
        time.sleep(0.05)
    return output


def await_ownership(router: Process) -> None:
    """Wait until a router owns the log."""
    deadline = time.monotonic() + patient(20)
    while not owns_log(router):
        assert time.monotonic() < deadline, router.stderr
        time.sleep(0.05)


@linux
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_two_routers_on_one_database_as_documented(server: PostgresServer, tmp_path: Path) -> None:
    commands = START.replace("127.0.0.1:5432", server.address).replace("pip install", "true")
    ports = {"50051": free_port(), "50052": free_port()}
    for documented, port in ports.items():
        commands = commands.replace(documented, str(port))
    commands = commands.replace(
        "trunkline-edge serve", "TRUNKLINE_EDGE_LISTEN=127.0.0.1:0 trunkline-edge serve"
    )
    start_second = commands.index("TRUNKLINE_DATA_DIR=router-b")
    with shell(tmp_path) as running:
        assert running.stdin is not None
        running.stdin.write(commands[:start_second])
        running.stdin.flush()
        await_output(tmp_path, '"listening"')
        running.stdin.write(commands[start_second:])
        running.stdin.flush()
        await_output(tmp_path, "a standby: another router owns the log")
        await_output(tmp_path, '"listening"', 3)
        running.stdin.write(f"{TAKEOVER}\necho finished\n")
        running.stdin.flush()
        output = await_output(tmp_path, "finished")
    assert "Tea is ready" in output
    assert "Traceback" not in output
    assert PASSWORD not in output


def test_routers_run_with_the_documented_rights_only(server: PostgresServer, tmp_path: Path) -> None:
    rights = psql(
        server,
        "SELECT has_database_privilege('trunkline', 'trunkline', wanted) FROM"
        " unnest(ARRAY['CONNECT', 'CREATE', 'TEMPORARY']) AS wanted",
    )
    assert rights.split() == ["t", "f", "f"]
    with router_process(tmp_path / "a", TRUNKLINE_DATABASE_URL=url(server)) as router:
        await_ownership(router)
    psql(server, OTHER_ROLE)
    env = {"TRUNKLINE_OWNERSHIP_LEASE_S": "1"}
    other = url(server, "trunkline_router:change-me-too", "trunkline?search_path=trunkline")
    with router_process(tmp_path / "b", TRUNKLINE_DATABASE_URL=other, **env) as router:
        await_ownership(router)
        with router_process(tmp_path / "c", TRUNKLINE_DATABASE_URL=other, **env) as standby:
            router.kill()
            await_ownership(standby)
    psql(server, ANALYST)
    psql(server, f"SET ROLE analyst;\nSET search_path = trunkline;\n{QUERY}")
    with pytest.raises(AssertionError, match="permission denied"):
        psql(server, "SET ROLE analyst;\nTABLE trunkline.tenants")
    psql(server, VACUUM)


@pytest.fixture
def dump() -> Iterator[str]:
    """Path of a dump, in a folder of PostgreSQL's account."""
    folder = scratch_folder()
    yield str(folder / "trunkline.dump")
    remove_folder(folder)


def test_a_dump_is_taken_and_restored_as_documented(
    server: PostgresServer, dump: str, tmp_path: Path
) -> None:
    with router_process(tmp_path / "a", TRUNKLINE_DATABASE_URL=url(server)):
        run(server.version, *BACKUP.replace("trunkline.dump", dump).replace(VARIABLE, url(server)).split())
    create, restore = RESTORE.splitlines()
    address = ["-h", "127.0.0.1", "-p", str(server.port), "-U", SUPERUSER]
    run(server.version, *create.split(), *address)
    run(server.version, *restore.replace("trunkline.dump", dump).split(), *address)
    copy = url(server, database="restored")
    env = environment({"TRUNKLINE_DATABASE_URL": copy})
    restored = [sys.executable, "-m", "trunkline_router", "restored"]
    done = subprocess.run(restored, env=env, capture_output=True, text=True, timeout=patient(30), check=False)
    assert done.returncode == 0, done
    with router_process(tmp_path / "copy", TRUNKLINE_DATABASE_URL=copy) as router:
        await_ownership(router)


def test_every_variable_on_the_page_is_one() -> None:
    known = {f"TRUNKLINE_{name.upper()}" for name in RouterSettings.model_fields} | {"TRUNKLINE_ROUTER"}
    assert set(re.findall(r"\bTRUNKLINE_[A-Z_]+\b", PAGE)) <= known


def test_probes_are_yaml() -> None:
    balancer, probes = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
    assert (
        balancer["health_checks"][0]["grpc_health_check"]["service_name"] == "trunkline.v1.BroadcastService"
    )
    assert probes["livenessProbe"]["grpc"] == {"port": 50051}
