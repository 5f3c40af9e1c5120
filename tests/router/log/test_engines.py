"""The engine that the settings select."""

from __future__ import annotations

from pathlib import Path

from structlog.testing import capture_logs
from trunkline_router.log.engines import open_database
from trunkline_router.log.postgres.installation_file import check_installation
from trunkline_router.settings import RouterSettings


def test_a_folder_whose_log_moved_to_postgres_is_not_served_from_its_file_unnoticed(tmp_path: Path) -> None:
    settings = RouterSettings(data_dir=tmp_path)
    with capture_logs() as lines:
        open_database(settings)
    assert lines == []
    check_installation(tmp_path, "an-installation")
    with capture_logs() as lines:
        open_database(settings)
    assert [each["log_level"] for each in lines] == ["warning"]
    assert "was in PostgreSQL" in lines[0]["event"]
