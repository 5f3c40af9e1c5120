"""Private files and folders: modes under any umask, and of what exists already."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from trunkline_runtime.private_files import (
    create_private_file,
    create_private_folder,
    narrow,
    open_private,
)


@pytest.fixture(params=[0o000, 0o022, 0o077])
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("_umask")
def test_new_files_and_folders_are_their_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "above" / "data"
    with capture_logs() as lines:
        create_private_folder(folder)
        create_private_file(folder / "empty")
        with open(folder / "opened", "x", opener=open_private) as file:
            assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
    assert [mode(path) for path in (folder.parent, folder)] == [0o700, 0o700]
    assert [mode(folder / name) for name in ("empty", "opened")] == [0o600, 0o600]
    assert lines == []


def test_existing_files_and_folders_are_narrowed_and_logged_once(tmp_path: Path) -> None:
    folder, file, script = tmp_path / "data", tmp_path / "data" / "file", tmp_path / "data" / "script"
    folder.mkdir()
    for path, wide in ((file, 0o666), (script, 0o755), (folder, 0o777)):
        path.touch() if path != folder else None
        path.chmod(wide)
    with capture_logs() as lines:
        for _ in range(2):
            create_private_folder(folder)
            create_private_file(file)
            narrow((script, folder / "absent"))
    assert (mode(folder), mode(file), mode(script)) == (0o700, 0o600, 0o700)
    assert [line["modes"] for line in lines] == [
        {str(folder): "0777"},
        {str(file): "0666"},
        {str(script): "0755"},
    ]


def test_a_folder_shared_by_design_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    create_private_folder(tmp_path)
    assert mode(tmp_path) == 0o1777


def test_a_path_of_another_owner_is_logged_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    tmp_path.chmod(0o770)
    monkeypatch.setattr(Path, "chmod", refuse)
    with capture_logs() as lines:
        create_private_folder(tmp_path)
    [line] = lines
    assert line["problems"] == {str(tmp_path): "Operation not permitted"}
