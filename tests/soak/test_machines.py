"""The soak runs every state machine of the suite, and reports what failed so that it can be repeated."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from tests.soak import machines
from tests.soak.__main__ import run_machine

TESTS = Path(__file__).parents[1]


def test_every_state_machine_is_soaked() -> None:
    text = "".join(path.read_text("utf-8") for path in TESTS.rglob("test_*.py") if path != Path(__file__))
    names = re.findall(r"^class (\w+)\(RuleBasedStateMachine\)", text, flags=re.MULTILINE)
    assert len(names) > 5
    source = Path(machines.__file__).read_text("utf-8")
    assert [name for name in names if name not in source] == []


class Odd(RuleBasedStateMachine):
    """Fails at the third odd number above a thousand."""

    seen = 0

    @rule(number=st.integers(0, 10_000))
    def take(self, number: int) -> None:
        self.seen += number % 2 and number > 1000
        assert self.seen < 3


def test_a_failed_seed_ends_the_run_and_prints_the_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(machines.MACHINES, "odd", lambda number: machines.run_machine(Odd, number))
    outputs = set()
    for _ in range(2):
        assert run_machine("odd", 7, 60) == 1
        text = capsys.readouterr()
        assert text.err.count("state.take(number=1001)") == 3
        outputs.add(re.sub(r"0x\w+|line \d+", "", text.err))
    assert len(outputs) == 1, "the same seed fails in another way"


def test_a_run_goes_through_the_seeds_until_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds: list[int] = []
    monkeypatch.setitem(machines.MACHINES, "quiet", seeds.append)
    assert run_machine("quiet", 7, 0.01) == 0
    assert seeds == list(range(7, 7 + len(seeds)))
    assert capsys.readouterr().out.splitlines() == [f"seed {number}" for number in seeds]
