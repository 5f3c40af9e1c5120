"""Uploads in a folder."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline_router.log.interface import LogDamaged, LogUnavailable
from trunkline_router.media import folder as media_folder
from trunkline_router.media.folder import SWEPT_FILES, MediaFolder
from trunkline_router.media.media_store import Stored, Upload, UploadLimits

pytestmark = pytest.mark.io

KEPT_S = 100.0
NOW = 1_000_000.0
LIMITS = UploadLimits(files=3, bytes=4096)
PICTURE = Upload(b"\x89PNG\n not a line of the head", "image/png")


@pytest.fixture
def media(tmp_path: Path) -> Iterator[MediaFolder]:
    store = MediaFolder.open(tmp_path / "media", KEPT_S)
    yield store
    store.close()


def reopened(tmp_path: Path) -> MediaFolder:
    return MediaFolder.open(tmp_path / "media", KEPT_S)


def files(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "media").rglob("*") if path.is_file()]


async def stored(
    media: MediaFolder, tenant: str = "a", user: str = "", upload: Upload = PICTURE, now_s: float = NOW
) -> Stored:
    return await media.put(tenant, user, upload, LIMITS, now_s)


async def test_an_upload_is_read_by_its_tenant_and_key_only(media: MediaFolder) -> None:
    mine = await stored(media)
    assert await media.get("a", mine.key, NOW) == PICTURE
    assert await media.get("b", mine.key, NOW) is None
    for key in ("", "0" * 48, mine.key.upper(), f"../{mine.key}", f"{mine.key}\0", mine.key[:-1], "é" * 48):
        assert await media.get("a", key, NOW) is None


async def test_an_upload_survives_a_restart_until_it_expires(media: MediaFolder, tmp_path: Path) -> None:
    key, expires_at_s = await stored(media)
    again = reopened(tmp_path)
    assert expires_at_s == NOW + KEPT_S
    assert await again.get("a", key, NOW + KEPT_S - 1) == PICTURE
    assert await again.get("a", key, NOW + KEPT_S) is None
    assert await again.sweep(NOW + KEPT_S - 1) == 0
    assert await again.sweep(NOW + KEPT_S) == 1
    assert files(tmp_path) == []
    again.close()


async def test_the_folder_discloses_neither_content_nor_names(media: MediaFolder, tmp_path: Path) -> None:
    key, _ = await stored(media, "../acme", "ann/../bob")
    [file] = files(tmp_path)
    everything = str(file).encode() + file.read_bytes()
    for secret in (b"acme", b"ann", key.encode(), b"PNG", b"image"):
        assert secret not in everything.removeprefix(str(tmp_path).encode())
    assert file.stat().st_mode & 0o077 == file.parent.stat().st_mode & 0o077 == 0
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(LogDamaged):
        await media.get("../acme", key, NOW)


async def test_the_uploads_of_a_tenant_are_bounded_together(media: MediaFolder, tmp_path: Path) -> None:
    results = await asyncio.gather(*(stored(media) for _ in range(5)), return_exceptions=True)
    refused = [each for each in results if isinstance(each, Refused)]
    assert [str(each.entry.code) for each in refused] == [catalogue.MEDIA_FULL.code] * 2
    assert len(files(tmp_path)) == 3
    # A restart counts the same; another tenant has bounds of its own.
    again = reopened(tmp_path)
    with pytest.raises(Refused, match="3 files"):
        await stored(again)
    await stored(again, "b")
    with pytest.raises(Refused, match="4096 bytes"):
        await stored(again, "b", upload=Upload(bytes(4096), "image/png"))
    await again.sweep(NOW + KEPT_S)
    await stored(again)
    again.close()


async def test_a_failing_disk_stores_nothing_and_counts_nothing(
    media: MediaFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        for _ in range(5):
            with pytest.raises(LogUnavailable, match="No space left"):
                await stored(media)
    assert files(tmp_path) == []
    await stored(media)


async def test_what_a_killed_process_left_is_deleted(media: MediaFolder, tmp_path: Path) -> None:
    await stored(media)
    [file] = files(tmp_path)
    file.with_suffix(".tmp").write_bytes(b"half")
    (file.parent / "notes.txt").write_text("an operator's own")
    reopened(tmp_path).close()
    assert {path.name for path in files(tmp_path)} == {file.name, "notes.txt"}


async def test_a_user_and_a_tenant_are_erased(media: MediaFolder, tmp_path: Path) -> None:
    await stored(media, "a", "ann")
    kept = await stored(media, "a", "bob")
    await stored(media, "b", "ann")
    assert await reopened(tmp_path).erase_user("a", "ann") == 1
    assert await media.get("a", kept.key, NOW) == PICTURE
    assert await media.erase_tenant("b") == 1
    assert len(files(tmp_path)) == 1
    assert await media.erase_tenant("nobody") == await media.erase_user("nobody", "ann") == 0


async def test_a_sweep_is_bounded(media: MediaFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_folder, "SWEPT_FILES", 2)
    assert SWEPT_FILES > 2
    for _ in range(3):
        await stored(media)
    assert [await media.sweep(NOW + KEPT_S) for _ in range(3)] == [2, 1, 0]
