"""The operator key: configured, or created once in the data folder."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from trunkline_router import operator_key as module
from trunkline_router.operator_key import FILE, operator_key
from trunkline_router.settings import RouterSettings
from trunkline_runtime.process import StartError


def settings(folder: Path, key: str = "") -> RouterSettings:
    return RouterSettings(data_dir=folder, operator_key=SecretStr(key))


def test_a_configured_key_needs_no_file(tmp_path: Path) -> None:
    assert operator_key(settings(tmp_path, "0123456789abcdef")) == "0123456789abcdef"
    assert list(tmp_path.iterdir()) == []


def test_a_key_file_is_created_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    key = operator_key(settings(folder))
    assert len(key) >= 32
    assert stat.S_IMODE((folder / FILE).stat().st_mode) == 0o600
    assert operator_key(settings(folder)) == key
    assert [path.name for path in folder.iterdir()] == [FILE]


def test_routers_starting_together_get_the_same_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: False)
    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(lambda _: operator_key(settings(tmp_path)), range(8)))
    assert len(found) == 1


def test_a_failed_write_leaves_no_key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(StartError, match="No space left"):
        operator_key(settings(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["short", "x" * 1025, "a key with blanks in it", "schlüssel-schlüssel", "\n"])
def test_an_invalid_key_is_rejected_without_being_printed(key: str, tmp_path: Path) -> None:
    with pytest.raises(StartError, match="TRUNKLINE_OPERATOR_KEY") as refused:
        operator_key(settings(tmp_path, key))
    assert key.strip() == "" or key not in str(refused.value)
    (tmp_path / FILE).write_text(key, encoding="utf-8")
    with pytest.raises(StartError, match=FILE) as refused:
        operator_key(settings(tmp_path))
    assert key.strip() == "" or key not in str(refused.value)


def test_an_unreadable_key_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(StartError, match="TRUNKLINE_OPERATOR_KEY"):
        operator_key(settings(tmp_path))


def test_settings_never_print_the_key(tmp_path: Path) -> None:
    configured: Any = settings(tmp_path, "0123456789abcdef")
    assert "0123456789abcdef" not in f"{configured!r} {configured.operator_key}"
