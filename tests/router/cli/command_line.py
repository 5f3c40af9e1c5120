"""An operator at the command line of a router."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from trunkline_router.cli.command_tree import app
from typer.testing import CliRunner

OPERATOR = "the-operator-of-the-tests"


class Answer(NamedTuple):
    """How a command has ended, and what it has said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it has said, to a script."""
        return json.loads(self.out)


class CommandLine:
    """Runs commands against one router."""

    def __init__(self, router: str) -> None:
        self.router = router

    def run(self, *words: str, stdin: str = "", **env: str) -> Answer:
        """Run a command, whatever comes of it."""
        known = {"TRUNKLINE_ROUTER": self.router, "TRUNKLINE_OPERATOR_KEY": OPERATOR, "COLUMNS": "200"}
        given: dict[str, str | None] = {**known, **env}
        result = CliRunner().invoke(app, list(words), input=stdin, env=given)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Answer(result.exit_code, result.stdout, result.stderr)

    def __call__(self, *words: str, stdin: str = "", **env: str) -> Answer:
        """Run a command that is to succeed."""
        answer = self.run(*words, stdin=stdin, **env)
        assert answer.code == 0, answer
        return answer

    def refusal(self, *words: str, stdin: str = "", **env: str) -> str:
        """The one line that a command says that cannot be done."""
        answer = self.run(*words, stdin=stdin, **env)
        assert (answer.code, answer.out) == (1, ""), answer
        [line] = answer.err.splitlines()
        return line
