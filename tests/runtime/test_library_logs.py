"""Log lines of libraries and of the interpreter have the format of our own."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs
from trunkline_runtime.library_logs import LibraryLogHandler
from trunkline_runtime.line_throttle import LINES_PER_S

from tests.support.patience import patient
from tests.support.processes import ROOT, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Writes to stderr in all ways that have nothing to do with this project.
_NOISY = """
import asyncio, logging, sys, threading, traceback, warnings
from trunkline_runtime import library_logs, logs

logs.configure("json")
library_logs.install()
logging.getLogger("uvicorn.error").error("Exception in ASGI application\\n", exc_info=ValueError("v"))
logging.getLogger("grpc._cython.cygrpc").error("%d %s", 1, 2, 3)
warnings.warn("a warning")
try:
    1 / 0
except ZeroDivisionError:
    traceback.print_exc()
print("stray", "text", file=sys.stderr)

class Resurrected:
    def __del__(self):
        raise KeyError("ignored")

def fail():
    password = "hush-hush"
    raise LookupError("in a thread")

async def lose_a_task():
    asyncio.create_task(raise_later())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(fail)
    await asyncio.sleep(0)

async def raise_later():
    raise OSError("in a task")

Resurrected()
thread = threading.Thread(target=fail, name="t1")
thread.start()
thread.join()
asyncio.run(lose_a_task())
fail()
"""


@pytest.fixture
def library() -> Iterator[logging.Logger]:
    logger = logging.getLogger("somelib.part")
    logger.propagate = False
    handler = LibraryLogHandler()
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)


def test_a_record_becomes_a_line_with_the_first_line_of_its_text(library: logging.Logger) -> None:
    with capture_logs() as lines:
        library.warning("refused %d\nfuture: <Task>", 7)
        library.info("chatter")
    assert lines == [{"event": "refused 7", "logger": "somelib.part", "log_level": "warning"}]


def test_an_error_that_a_peer_caused_has_no_traceback(library: logging.Logger) -> None:
    mistake = KeyError("ours")
    with capture_logs() as lines:
        library.error("Fatal error", exc_info=ConnectionResetError("reset\nby peer"))
        library.error("Fatal error", exc_info=mistake)
    assert lines[0]["problem"] == "ConnectionResetError: reset"
    assert "exc_info" not in lines[0]
    assert lines[1]["exc_info"] is mistake


def test_the_lines_of_each_library_are_rate_limited() -> None:
    handler = LibraryLogHandler()
    with capture_logs() as lines:
        for name in ("one.a", "one.b", "two"):
            for _ in range(200):
                handler.handle(logging.LogRecord(name, logging.WARNING, "", 0, "noise", None, None))
    # A second may end meanwhile.
    for name in ("one", "two"):
        count = sum(line["logger"].partition(".")[0] == name for line in lines)
        assert LINES_PER_S <= count <= 2 * LINES_PER_S


@pytest.mark.io
def test_everything_that_the_interpreter_writes_is_structured_and_has_no_local_values() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _NOISY],
        cwd=ROOT,
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=patient(30),
        check=False,
    )
    assert done.returncode == 1
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stderr.splitlines()]
    errors = [line["exception"][0]["exc_type"] for line in lines if "exception" in line]
    assert sorted(errors) == [
        "KeyError",
        "LookupError",
        "LookupError",
        "LookupError",
        "OSError",
        "ValueError",
    ]
    assert {"level", "timestamp", "event"} <= set.intersection(*map(set, lines))
    assert "a log record was unreadable" in {line["event"] for line in lines}
    assert any("a warning" in line["event"] for line in lines)
    stray = [line["text"] for line in lines if line["event"] == "a library wrote to stderr"]
    assert stray == ["ZeroDivisionError: division by zero", "stray text"]
    assert "hush-hush" not in done.stderr
