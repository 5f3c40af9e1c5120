"""Fetches the uploads that clients' frames refer to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused

from trunkline_edge.core.edge import EdgeCore
from trunkline_edge.core.effects import FetchUploads
from trunkline_edge.core.upload_frames import MAX_MESSAGE_BYTES, FetchedUpload

#: Reads one upload, by tenant and key. Raises Refused.
ReadUpload = Callable[[str, str], Awaitable[FetchedUpload]]

#: Frames whose uploads are fetched at a time, each of at most MAX_MESSAGE_BYTES; further ones wait.
MAX_FETCHES = 4


class FetchingRuntime(Protocol):
    """Runtime that uploads are fetched for."""

    core: EdgeCore

    def step(self, operation: Callable[[], object]) -> None:
        """Run a call that may enter the core, then carry out its consequences."""


class UploadFetcher:
    """Fetches uploads for the core, in a task for each frame that refers to any."""

    def __init__(self, runtime: FetchingRuntime) -> None:
        self._runtime = runtime
        #: Set once, before the first client connects.
        self.read: ReadUpload = _no_reader
        self._fetches: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(MAX_FETCHES)

    def begin(self, effect: FetchUploads) -> None:
        """Fetch the uploads of a frame, then enter the core with them or with the failure."""
        task = asyncio.get_running_loop().create_task(self._fetch(effect))
        self._fetches.add(task)
        task.add_done_callback(self._fetches.discard)

    async def _fetch(self, effect: FetchUploads) -> None:
        frames = self._runtime.core.client_frames.uploads
        connection, awaited = effect.connection, effect.awaited
        async with self._room:
            try:
                uploads = await self._read_all(effect)
            except Refused as reason:
                refused = reason
                self._runtime.step(lambda: frames.failed(connection, refused, time.monotonic()))
                return
            self._runtime.step(lambda: frames.fetched(connection, awaited, uploads, time.monotonic()))

    async def _read_all(self, effect: FetchUploads) -> list[FetchedUpload]:
        """Read the uploads one after another, up to the size of a message. Raises Refused."""
        size = effect.awaited.frame.ByteSize()
        uploads = []
        for reference in effect.awaited.references:
            upload = await self.read(reference.tenant, reference.key)
            size += len(upload.content)
            if size > MAX_MESSAGE_BYTES:
                problem = f"has more than {MAX_MESSAGE_BYTES} bytes with its uploads"
                raise catalogue.INVALID_ARGUMENT.refused(field="message", problem=problem)
            uploads.append(upload)
        return uploads


async def _no_reader(tenant: str, key: str) -> FetchedUpload:
    raise catalogue.MEDIA_NOT_FOUND.refused(key=key)
