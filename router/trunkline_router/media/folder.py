"""Uploads in a folder of files.

A file is encrypted with its upload's key and named by a digest of it: without the key, which only the client
has, neither the folder nor a copy of it discloses anything, and no text of a client becomes part of a path.

    <folder>/<digest of the tenant>/<digest of the key>.<digest of the user, or 0>
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from typing import ParamSpec, Self, TypeVar

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from trunkline.v1 import catalogue
from trunkline_runtime.folder_sync import sync_folder
from trunkline_runtime.private_files import create_private_folder, open_private

from trunkline_router.log.interface import LogDamaged, LogUnavailable
from trunkline_router.media.media_store import Stored, Upload, UploadLimits

P = ParamSpec("P")
T = TypeVar("T")

_log = structlog.get_logger()

#: Uploads deleted by one sweep at most.
SWEPT_FILES = 200
#: Files written or read at a time; further ones wait.
_THREADS = 2

_KEY_BYTES = 24
_KEY = re.compile(rf"[0-9a-f]{{{2 * _KEY_BYTES}}}")
_NAME = re.compile(r"([0-9a-f]{40})\.([0-9a-f]{16}|0)")
_TEMPORARY = ".tmp"
_NOBODY = "0"
#: Each file has an encryption key of its own, so one nonce is enough.
_NONCE = bytes(12)


@dataclass(slots=True)
class _UploadFile:
    path: Path
    size: int
    expires_at_s: float


class _TenantFiles:
    """The files of one tenant, by the digests of their keys; the oldest first."""

    __slots__ = ("bytes", "files")

    def __init__(self) -> None:
        self.files: dict[str, _UploadFile] = {}
        self.bytes = 0

    def add(self, digest: str, file: _UploadFile) -> None:
        self.files[digest] = file
        self.bytes += file.size

    def remove(self, digest: str) -> _UploadFile | None:
        file = self.files.pop(digest, None)
        if file is not None:
            self.bytes -= file.size
        return file

    def check_room(self, size: int, limits: UploadLimits) -> None:
        """Raise Refused MEDIA_FULL."""
        if len(self.files) >= limits.files:
            raise catalogue.MEDIA_FULL.refused(limit=f"{limits.files} files")
        if self.bytes + size > limits.bytes:
            raise catalogue.MEDIA_FULL.refused(limit=f"{limits.bytes} bytes")


class MediaFolder:
    """A MediaStore. Counts of files and bytes are in memory, contents on disk only."""

    def __init__(self, folder: Path, kept_s: float) -> None:
        self._folder = folder
        self._kept_s = kept_s
        #: By digest of the tenant's name; none without files.
        self._tenants: dict[str, _TenantFiles] = {}
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="media")

    @classmethod
    def open(cls, folder: Path, kept_s: float) -> Self:
        """Open a folder, which is created if missing; `kept_s` is the time that an upload is kept.

        Deletes what a killed process left half-written. Raises OSError.
        """
        create_private_folder(folder)
        store = cls(folder, kept_s)
        entries = [(path, path.stat()) for path in folder.glob("*/*")]
        for path, status in sorted(entries, key=lambda entry: entry[1].st_mtime):
            found = _NAME.fullmatch(path.name)
            if found is None:
                if path.suffix == _TEMPORARY:
                    path.unlink()
                continue
            file = _UploadFile(path, status.st_size, status.st_mtime + kept_s)
            store._tenants.setdefault(path.parent.name, _TenantFiles()).add(found[1], file)
        return store

    async def put(self, tenant: str, user: str, upload: Upload, limits: UploadLimits, now_s: float) -> Stored:
        """See MediaStore."""
        key = secrets.token_hex(_KEY_BYTES)
        owner = _digest("user", f"{tenant}/{user}")[:16] if user else _NOBODY
        digest, folder = _digest("name", key), _tenant_digest(tenant)
        sealed_bytes = len(upload.content) + len(_head(upload.mime_type)) + 16
        file = _UploadFile(self._folder / folder / f"{digest}.{owner}", sealed_bytes, now_s + self._kept_s)
        files = self._tenants.get(folder) or _TenantFiles()
        files.check_room(file.size, limits)
        # Counted from now on, so that concurrent uploads cannot exceed the limits together.
        self._tenants[folder] = files
        files.add(digest, file)
        try:
            await self._run(_write, file.path, key, upload, now_s)
        except LogUnavailable:
            files.remove(digest)
            raise
        if digest not in files.files:
            # Erased while it was written.
            await self._run(_delete, [file.path])
        return Stored(key, file.expires_at_s)

    async def get(self, tenant: str, key: str, now_s: float) -> Upload | None:
        """See MediaStore."""
        files = self._tenants.get(_tenant_digest(tenant))
        if files is None or not _KEY.fullmatch(key):
            return None
        file = files.files.get(_digest("name", key))
        if file is None or file.expires_at_s <= now_s:
            return None
        return await self._run(_read, file.path, key)

    async def sweep(self, now_s: float) -> int:
        """See MediaStore."""
        expired: list[tuple[str, str]] = []
        for folder, files in self._tenants.items():
            due = takewhile(lambda item: item[1].expires_at_s <= now_s, files.files.items())
            expired += [(folder, digest) for digest, _ in due]
            if len(expired) >= SWEPT_FILES:
                break
        return await self._delete(expired[:SWEPT_FILES])

    async def erase_user(self, tenant: str, user: str) -> int:
        """See MediaStore."""
        owner, folder = _digest("user", f"{tenant}/{user}")[:16], _tenant_digest(tenant)
        files = self._tenants.get(folder, _TenantFiles()).files
        return await self._delete(
            [(folder, digest) for digest, file in files.items() if file.path.suffix == f".{owner}"]
        )

    async def erase_tenant(self, tenant: str) -> int:
        """See MediaStore."""
        folder = _tenant_digest(tenant)
        return await self._delete(
            [(folder, digest) for digest in self._tenants.get(folder, _TenantFiles()).files]
        )

    def close(self) -> None:
        """See MediaStore."""
        self._threads.shutdown()

    async def _delete(self, chosen: Iterable[tuple[str, str]]) -> int:
        """Delete files by tenant and digest. Those that cannot be deleted are tried again."""
        files = {place: self._tenants[place[0]].files[place[1]] for place in chosen}
        if not files:
            return 0
        deleted = await self._run(_delete, [file.path for file in files.values()])
        for (folder, digest), file in files.items():
            if file.path in deleted and folder in self._tenants:
                self._tenants[folder].remove(digest)
                if not self._tenants[folder].files:
                    del self._tenants[folder]
        return len(deleted)

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function on a thread. Raises LogUnavailable in place of OSError."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))
        except OSError as error:
            raise LogUnavailable(f"cannot use the folder of uploads: {error}") from error


def _digest(purpose: str, text: str) -> str:
    return sha256(f"{purpose}:{text}".encode()).hexdigest()[:40]


def _tenant_digest(tenant: str) -> str:
    return _digest("tenant", tenant)[:32]


def _cipher(key: str) -> AESGCM:
    return AESGCM(sha256(f"content:{key}".encode()).digest())


def _head(mime_type: str) -> bytes:
    return f"{mime_type}\n".encode()


def _write(path: Path, key: str, upload: Upload, now_s: float) -> None:
    """Write a file and wait until it is on disk; it appears as a whole or not at all."""
    sealed = _cipher(key).encrypt(_NONCE, _head(upload.mime_type) + upload.content, path.stem.encode())
    path.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = path.with_suffix(_TEMPORARY)
    try:
        with open(temporary, "wb", opener=open_private) as file:
            file.write(sealed)
            file.flush()
            # The time of expiry, after a restart.
            os.utime(file.fileno(), (now_s, now_s))
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    for folder in (path.parent, path.parent.parent):
        sync_folder(folder)


def _read(path: Path, key: str) -> Upload | None:
    try:
        sealed = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        head, _, content = _cipher(key).decrypt(_NONCE, sealed, path.stem.encode()).partition(b"\n")
    except InvalidTag:
        raise LogDamaged(f"{path} is not as it was written") from None
    return Upload(content, head.decode())


def _delete(paths: list[Path]) -> set[Path]:
    """Delete files; returns those that are gone."""
    deleted = set()
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("an upload cannot be deleted", path=str(path), problem=str(error.strerror))
            continue
        deleted.add(path)
    return deleted
