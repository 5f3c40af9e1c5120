"""Runs the operator's commands against a router."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from trunkline_router.cli.command_tree import app
from typer.testing import CliRunner

OPERATOR = "the-operator-of-the-tests"
#: Base64 of 32 bytes.
DATA_KEY = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0MTI="


class CommandResult(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The output of a command with --json."""
        return json.loads(self.out)


class CommandLine:
    """Runs commands against one router."""

    def __init__(self, router: str) -> None:
        self.router = router

    def run(self, *words: str, stdin: str = "", **env: str) -> CommandResult:
        """Run a command and return its result, successful or not."""
        known = {"TRUNKLINE_ROUTER": self.router, "TRUNKLINE_OPERATOR_KEY": OPERATOR, "COLUMNS": "200"}
        given: dict[str, str | None] = {**known, **env}
        result = CliRunner().invoke(app, list(words), input=stdin, env=given)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return CommandResult(result.exit_code, result.stdout, result.stderr)

    def __call__(self, *words: str, stdin: str = "", **env: str) -> CommandResult:
        """Run a command that must succeed."""
        done = self.run(*words, stdin=stdin, **env)
        assert done.code == 0, done
        return done

    def refusal(self, *words: str, stdin: str = "", **env: str) -> str:
        """Run a command that must fail, and return its one line on stderr."""
        done = self.run(*words, stdin=stdin, **env)
        assert (done.code, done.out) == (1, ""), done
        [line] = done.err.splitlines()
        return line
