"""Real PostgreSQL servers for tests, on a free port of 127.0.0.1, which are always stopped.

    dsn = shared_server(18).fresh_schema()  # one server per test process, started when first asked for

    with PostgresServer.create(18) as server:  # a server to stop, crash or fail over
        standby = server.base_backup(synchronous=True)
        server.crash()
        standby.promote()

The first server of a version takes half a second to create, each further one a tenth. Data stays in memory if
there is room (see scratch_folder); `fsync` and `synchronous_commit` are on, as in production. Clients log in
as the plain role `trunkline`, with a password; `execute` runs SQL as superuser.
"""

from __future__ import annotations

import atexit
import itertools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Literal, Self

import psutil
import pytest

from tests.support.patience import patient
from tests.support.postgres_binaries import (
    DATA,
    ENVIRONMENT,
    account,
    missing,
    programs,
    remove_folder,
    run,
    scratch_folder,
)
from tests.support.postgres_template import DATABASE, PASSWORD, ROLE, SUPERUSER, template
from tests.support.processes import guard

NEWEST = 18
READY_TIMEOUT_S = patient(20)
STOP_TIMEOUT_S = patient(20)
#: Schemas that one `psql` creates.
SCHEMAS_AT_ONCE = 50
#: Below the ports that systems give to outgoing connections: those may take the port of a stopped server.
PORTS = range(12_000, 30_000)
STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

StopMode = Literal["smart", "fast", "immediate"]


class PostgresServer:
    """A PostgreSQL server with its data folder. Not running after `stop` and `crash`; gone after `close`.

    Args:
        version: major version.
        folder: scratch folder that contains the data folder; `close` removes it.
    """

    def __init__(self, version: int, folder: Path) -> None:
        self.version = version
        #: Port of 127.0.0.1, the same after each start; 0 until the first.
        self.port = 0
        #: The end of the server's log.
        self.log: deque[str] = deque(maxlen=1000)
        self._folder = folder
        self._data = folder / DATA
        self._popen: subprocess.Popen[str] | None = None
        self._reader = threading.Thread()
        self._is_ready = threading.Event()
        self._schemas = itertools.count(1)
        self._unused_schemas: list[str] = []
        #: Started by `base_backup`.
        self.standbys: list[PostgresServer] = []

    @classmethod
    def create(
        cls, version: int = NEWEST, *, parent: Path | None = None, wal_segsize: int = 1, **settings: str
    ) -> Self:
        """Start a server with an empty database, and `settings` of postgresql.conf.

        Its folder is made in `parent`; by default in memory, see `scratch_folder`. Its log has files of
        `wal_segsize` MiB. Skips the test if there is no PostgreSQL for this platform.
        """
        if reason := missing():
            pytest.skip(reason)
        server = cls(version, scratch_folder(parent))
        try:
            shutil.copytree(template(version), server._data, symlinks=True)
            server._own_data()
            if wal_segsize != 1:
                run(version, "pg_resetwal", f"--wal-segsize={wal_segsize}", "-D", str(server._data))
            server._write_settings(settings)
            server.start()
        except BaseException:
            server.close()
            raise
        return server

    @property
    def address(self) -> str:
        """`host:port` of the server."""
        return f"127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the server's first process has not exited."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the server's first process."""
        assert self._popen is not None
        return self._popen.pid

    def dsn(self, schema: str = "", *, address: str = "", **parameters: str) -> str:
        """Return the DSN of the plain role in a schema.

        `address` replaces the server's, for example by that of a proxy, or adds those of standbys.
        """
        if schema:
            parameters = {"search_path": schema, **parameters}
        query = "&".join(f"{name}={value}" for name, value in parameters.items())
        host = address or self.address
        return f"postgresql://{ROLE}:{PASSWORD}@{host}/{DATABASE}" + (f"?{query}" if query else "")

    def execute(self, sql: str) -> str:
        """Run SQL as superuser; return the rows, one a line, columns separated by |.

        Raises:
            AssertionError: the server reported an error, or does not run.
        """
        options = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", self._superuser_dsn()]
        return run(self.version, "psql", *options, stdin=sql).strip()

    def create_schema(self, name: str) -> str:
        """Create a schema that belongs to the plain role; return its DSN."""
        self.execute(f"CREATE SCHEMA {name} AUTHORIZATION {ROLE}")
        return self.dsn(name)

    def fresh_schema(self) -> str:
        """Return the DSN of an empty schema that nobody else uses."""
        if not self._unused_schemas:
            names = [f"test_{next(self._schemas)}" for _ in range(SCHEMAS_AT_ONCE)]
            self.execute("".join(f"CREATE SCHEMA {name} AUTHORIZATION {ROLE};" for name in names))
            self._unused_schemas = names[::-1]
        return self.dsn(self._unused_schemas.pop())

    def configure(self, **settings: str) -> None:
        """Change settings of the running server; empty resets one. Sessions follow soon."""
        for name, value in settings.items():
            change = f"SET {name} = '{value}'" if value else f"RESET {name}"
            self.execute(f"ALTER SYSTEM {change}")
        self.execute("SELECT pg_reload_conf()")

    def start(self) -> None:
        """Start the stopped or crashed server and wait until it accepts connections."""
        assert not self.running
        for _ in range(5):
            port = self.port or _free_port()
            self._launch(port)
            self._is_ready.wait(READY_TIMEOUT_S)
            if self.running and self._is_ready.is_set():
                self.port = port
                return
            self.crash()
            if self.port or not any("Address already in use" in line for line in self.log):
                break
        raise AssertionError("PostgreSQL did not start; its log:\n" + "\n".join(self.log))

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server: smart waits until sessions end, fast ends them, immediate needs recovery."""
        if self._popen is None:
            return
        self._popen.send_signal(STOP_SIGNALS[mode])
        self._ended()

    def crash(self) -> None:
        """Kill all processes of the server with SIGKILL, as a failing machine would."""
        if self._popen is None:
            return
        self.freeze()
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._ended()

    def freeze(self) -> None:
        """Stop all processes with SIGSTOP: connections stay open, nothing is answered."""
        # The first one first: it starts the others.
        with suppress(psutil.NoSuchProcess):
            psutil.Process(self.pid).suspend()
            for process in self.processes():
                process.suspend()

    def thaw(self) -> None:
        """Let the processes go on after `freeze`."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def base_backup(self, *, synchronous: bool = False) -> PostgresServer:
        """Start a standby that streams from this server, which closes it.

        If it is synchronous, this server's commits wait for it, from now on.
        """
        standby = PostgresServer(self.version, scratch_folder())
        self.standbys.append(standby)
        name = f"standby_{len(self.standbys)}"
        source = f"{self._superuser_dsn('')}?application_name={name}"
        options = ["--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
        run(self.version, "pg_basebackup", "-D", str(standby._data), "-d", source, *options)
        standby.start()
        if synchronous:
            self.configure(synchronous_standby_names=name)
        state = "sync" if synchronous else "async"
        self.wait_for(
            f"SELECT FROM pg_stat_replication WHERE application_name='{name}' AND sync_state='{state}'"
        )
        return standby

    def wait_for(self, query: str) -> None:
        """Wait until a query returns a row."""
        self.execute(
            f"""DO $$BEGIN
                FOR n IN 1..{int(READY_TIMEOUT_S * 100)} LOOP
                    IF EXISTS ({query}) THEN RETURN; END IF;
                    PERFORM pg_sleep(0.01), pg_stat_clear_snapshot();
                END LOOP;
                RAISE 'no row within {READY_TIMEOUT_S:g} s';
            END$$"""
        )

    def promote(self) -> None:
        """Make this standby a primary, and wait until it is one."""
        assert self.execute(f"SELECT pg_promote(true, {int(READY_TIMEOUT_S)})") == "t"
        self.configure(synchronous_standby_names="")

    def close(self) -> None:
        """Stop the server and its standbys, and remove their data. Idempotent."""
        for standby in self.standbys:
            standby.close()
        if self.running:
            # Leaves no shared memory behind, unlike SIGKILL.
            self.thaw()
            with suppress(AssertionError):
                self.stop("immediate")
        self.crash()
        remove_folder(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _superuser_dsn(self, database: str = DATABASE) -> str:
        return f"postgresql://{SUPERUSER}@{self.address}/{database}"

    def _own_data(self) -> None:
        if owner := account():
            for path in [self._data, *self._data.rglob("*")]:
                os.chown(path, owner["user"], owner["group"], follow_symlinks=False)

    def _write_settings(self, settings: dict[str, str]) -> None:
        with (self._data / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def _launch(self, port: int) -> None:
        self._is_ready.clear()
        self.log.clear()
        self._popen = subprocess.Popen(
            [str(programs(self.version) / "postgres"), "-D", str(self._data), "-p", str(port)],
            cwd="/",
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            **account(),
        )
        # The server's other processes notice the death of the first, and end.
        guard().add(self._popen.pid)
        self._reader = threading.Thread(
            target=self._read, args=[self._popen], name=f"postgres {port} log", daemon=True
        )
        self._reader.start()

    def _read(self, popen: subprocess.Popen[str]) -> None:
        assert popen.stderr is not None
        with popen.stderr as lines:
            for line in lines:
                self.log.append(line.rstrip("\n"))
                if re.search(r"database system is ready to accept", line):
                    self._is_ready.set()
        # The log has ended: `start` need not wait any longer.
        self._is_ready.set()

    def processes(self) -> list[psutil.Process]:
        """All processes of the server, the first one first."""
        try:
            first = psutil.Process(self.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _ended(self) -> None:
        """Wait until no process of the server is left: the last one closes the log."""
        assert self._popen is not None
        try:
            self._popen.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"PostgreSQL did not stop within {STOP_TIMEOUT_S:g} s") from None
        self._reader.join(STOP_TIMEOUT_S)
        assert not self._reader.is_alive(), "a process of the server did not exit"
        guard().forget(self._popen.pid)
        self._popen = None


def shared_server(version: int = NEWEST) -> PostgresServer:
    """Return the server of this test process; start it if no test has asked for it yet.

    Tests must not stop it: use `PostgresServer.create` for that.
    """
    if version not in _shared:
        # Before the guard, which exists by then, closes at the exit.
        _shared[version] = PostgresServer.create(version)
        atexit.register(close_shared_servers)
    return _shared[version]


def close_shared_servers() -> None:
    """Stop the servers of this test process. Idempotent."""
    for version in list(_shared):
        _shared.pop(version).close()


_shared: dict[int, PostgresServer] = {}


def _free_port() -> int:
    while True:
        port = random.choice(PORTS)
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
