"""Processes that compete for one log, under faults that a test injects."""

from __future__ import annotations

import itertools
import json
import signal
import sys
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Self

from tests.router.log.postgres.log_ledger import LogLedger
from tests.support.fault_proxy import FaultProxy
from tests.support.patience import patient
from tests.support.processes import Process, importing_tests

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from tests.support.postgres import PostgresServer

SCRIPT = Path(__file__).with_name("log_writer_script.py")
SCHEMA = "competing"
#: Bound on the wait for the effect of a fault, beside the lease.
WAIT_S = patient(20)


class LogWriters:
    """An owner and standbys of the log in the schema SCHEMA of a server, connected through a proxy.

    Args:
        rng: chooses the moments of faults.
        unfenced: the writers look at no fence, and the tables have no keys that would stop two owners.
    """

    def __init__(
        self, server: PostgresServer, rng: Random, lease_s: float, *, count: int = 2, unfenced: bool = False
    ) -> None:
        self.server = server
        self.ledger = LogLedger()
        #: The faults so far.
        self.history: list[str] = []
        self._rng = rng
        self._lease_s = lease_s
        self._count = count
        self._unfenced = unfenced
        self._names = (f"w{number}" for number in itertools.count(1))
        self._running: list[Process] = []
        #: The writer whose commit was acked last.
        self._owner: Process | None = None
        self._acks: Counter[Process] = Counter()
        self._fenced: Counter[Process] = Counter()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.server.create_schema(SCHEMA)
        with self._stack:
            self._proxy = self._stack.enter_context(FaultProxy(self.server.address))
            self._start()
            self._await_acks(1)
            if self._unfenced:
                self._take_out_keys()
            for _ in range(self._count - 1):
                self._start()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def unknown_commits(self) -> int:
        """Number of commits whose outcome the running writers had to look up."""
        return sum(writer.stderr.count("was not confirmed") for writer in self._running)

    def stop_and_wake_owner(self) -> None:
        """Stop the owner with SIGSTOP until another one has taken over; it must be fenced when it wakes."""
        owner = self._begin("stop and wake the owner")
        fenced = self._fenced[owner]
        owner.signal(signal.SIGSTOP)
        try:
            self._await_acks(self._rng.randint(1, 20), but=owner)
        finally:
            owner.signal(signal.SIGCONT)
        if not self._unfenced:
            self._wait(lambda: self._fenced[owner] > fenced, "the former owner is fenced")
        else:
            # The first ones may be of commits from before.
            acks = self._acks[owner] + 10
            self._wait(lambda: self._acks[owner] > acks, "the former owner goes on")

    def kill_owner(self) -> None:
        """Kill the owner with SIGKILL, and start another standby."""
        owner = self._begin("kill the owner")
        owner.kill()
        self._drain(owner)
        self._running.remove(owner)
        self._await_acks(1)
        self._start()

    def crash_server(self) -> None:
        """Kill the server's processes in the midst of commits, and start it again."""
        self._begin("crash the server")
        self.server.crash()
        self.server.start()
        self._await_acks(1)

    def fail_over(self) -> None:
        """Crash the server and promote its synchronous standby, which gets a standby of its own."""
        self._begin("fail over")
        (standby,) = self.server.standbys
        self.server.crash()
        standby.promote()
        self.server = standby
        self._proxy.redirect(standby.address)
        self._await_acks(1)
        standby.base_backup(synchronous=True)

    def cut_connections(self) -> None:
        """Reset all connections to the server."""
        self._begin("cut the connections")
        self._proxy.cut()
        self._await_acks(1)

    def lose_answers(self) -> None:
        """Let requests arrive without answers for a moment, then reset the connections."""
        self._begin("lose answers")
        self._proxy.stall("to_client")
        time.sleep(self._rng.uniform(0.0, 0.1))
        self._proxy.refuse()
        self._proxy.resume()
        self._proxy.accept()
        self._await_acks(1)

    def violations(self) -> list[str]:
        """Kill all, and compare what they were answered with the log."""
        for writer in self._running:
            writer.kill()
            self._drain(writer)
        self._running.clear()
        return self.ledger.violations(self.server, SCHEMA)

    def _begin(self, fault: str) -> Process:
        """Let the owner commit for a random time; return it."""
        self.history.append(fault)
        self._await_acks(self._rng.randint(1, 20))
        # Within a commit as likely as between two.
        time.sleep(self._rng.uniform(0, 0.003))
        assert self._owner is not None
        return self._owner

    def _await_acks(self, count: int, *, but: Process | None = None) -> None:
        """Wait until this many commits were acked, to others than `but`."""
        self._pump()

        def acks() -> int:
            return sum(number for writer, number in self._acks.items() if writer is not but)

        wanted = acks() + count
        self._wait(lambda: acks() >= wanted, f"{count} commits are acked")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            if self._pump():
                continue
            for writer in self._running:
                assert writer.running, f"a writer died:\n{writer.stderr}"
            if time.monotonic() > deadline:
                logs = "\n".join(writer.stderr for writer in self._running)
                raise AssertionError(f"not within {WAIT_S:g} s: {what}; {self.history}\n{logs}")
            time.sleep(0.001)

    def _pump(self) -> int:
        """Take the lines that the writers have printed; return their number."""
        return sum(self._take_lines(writer) for writer in self._running)

    def _take_lines(self, writer: Process) -> int:
        count = 0
        with suppress(Empty):
            while (line := writer._lines.get_nowait()) is not None:
                count += 1
                kind = self.ledger.take(line)
                self._acks[writer] += kind == "acked"
                self._fenced[writer] += kind == "fenced"
                if kind == "acked":
                    self._owner = writer
        return count

    def _drain(self, killed: Process) -> None:
        """Take what a killed writer had printed; its last line may be cut off."""
        killed._reader.join()
        with suppress(json.JSONDecodeError):
            self._take_lines(killed)

    def _start(self) -> None:
        env = importing_tests() | {
            "LOG_NAME": next(self._names),
            "LOG_DSN": self.server.dsn(SCHEMA, address=self._proxy.address),
            "LOG_LEASE_S": str(self._lease_s),
            "LOG_UNFENCED": "1" if self._unfenced else "",
        }
        process = Process([sys.executable, str(SCRIPT)], env, "log writer", SCRIPT.parent)
        self._running.append(self._stack.enter_context(process))

    def _take_out_keys(self) -> None:
        for table in ("messages", "events"):
            self.server.execute(f"ALTER TABLE {SCHEMA}.{table} DROP CONSTRAINT {table}_pkey")
