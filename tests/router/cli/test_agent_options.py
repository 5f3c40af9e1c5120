"""Settings of agents on the command line: `concurrency=8`, or `helper:concurrency=8` for one agent."""

from __future__ import annotations

import re

import pytest
import typer
from trunkline.v1.tenant_pb2 import TenantSettings
from trunkline_router.cli.agent_options import agent_settings, set_agent_setting


def test_settings_of_agents_are_set_shown_and_forgotten() -> None:
    settings = TenantSettings()
    for assignment in (
        "max_attempts=5",
        "helper:max_retry_s=10m",
        "a.b=c:concurrency=8",
        "a.b=c:accepts=images",
    ):
        set_agent_setting(settings, assignment)
    assert list(agent_settings(settings)) == [
        "max_attempts=5",
        "a.b=c:concurrency=8",
        "a.b=c:accepts=images",
        "helper:max_retry_s=10m",
    ]
    for assignment in ("max_attempts=0", "helper:max_retry_s=0", "a.b=c:", "unknown:"):
        set_agent_setting(settings, assignment)
    assert settings == TenantSettings()


@pytest.mark.parametrize(
    ("assignment", "problem"),
    [
        ("attempts=5", "'attempts' is not a setting of agents; the settings are max_attempts, "),
        ("helper:", ""),
        ("", "'' is not a setting"),
        ("max_attempts", "max_attempts must be a number, not ''"),
        ("helper:max_attempts=-1", "max_attempts must be a number, not '-1'"),
        ("accepts=pictures", "accepts must be one of default, none, images, any, not 'pictures'"),
        ("concurrency=4294967296", "concurrency must be at most 4294967295"),
        ("max_retry_s=soon", "'soon' is not a duration"),
    ],
)
def test_an_invalid_setting_of_agents_changes_nothing(assignment: str, problem: str) -> None:
    settings = TenantSettings()
    if problem:
        with pytest.raises(typer.BadParameter, match=re.escape(problem)):
            set_agent_setting(settings, assignment)
    else:
        set_agent_setting(settings, assignment)
    assert settings == TenantSettings()
