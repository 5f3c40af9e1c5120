"""The stress run reports a failure so that it can be repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stress import __main__ as stress
from tests.stress.scenarios import SCENARIOS, Run, Scenario


def fails(run: Run) -> None:
    run.history.extend(str(run.rng.randint(0, 10**9)) for _ in range(run.rounds))
    raise AssertionError("7 is lost")


def test_a_failure_is_kept_with_its_seed_and_its_faults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stress, "FAILURES", tmp_path)
    monkeypatch.setitem(SCENARIOS, "odd", Scenario(fails, 3))
    kept = set()
    for _ in range(2):
        assert not stress.run_scenario("odd", 1234, 3)
        kept.add((tmp_path / "odd-1234.txt").read_text())
    (text,) = kept
    assert text.startswith("Repeat: make stress SCENARIO=odd SEED=1234 ROUNDS=3\n")
    assert "7 is lost" in text
    assert text in capsys.readouterr().out


def test_a_passed_scenario_is_reported_with_the_number_of_faults(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SCENARIOS, "quiet", Scenario(lambda run: run.history.append("cut"), 1))
    assert stress.run_scenario("quiet", 1, 1)
    assert capsys.readouterr().out.startswith("quiet: passed, 1 faults in 0 s")
