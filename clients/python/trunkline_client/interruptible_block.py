"""The block in which a message is written, and its interruption when nothing more can be written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

from trunkline_client.errors import ReplyCancelled, TrunklineError

OnCancel: TypeAlias = Callable[[], None]
"""Called when readers cancel a message, instead of interrupting the block that writes it."""


class InterruptibleBlock:
    """An `async with` block that others can interrupt, as `asyncio.timeout` interrupts its block.

    The block's task is cancelled; `absorb_interruption` undoes that cancel when the block is left, so
    only `cause` remains to be raised. One task enters and leaves; several may wait.
    """

    def __init__(self, on_cancel: OnCancel | None) -> None:
        #: The first reason for which the block was interrupted.
        self.cause: TrunklineError | None = None
        #: Whether the block is running.
        self.is_active = False
        self._on_cancel = on_cancel
        self._changed = asyncio.Event()
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0

    def enter(self) -> None:
        """Marks the current task's block as running."""
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        self.is_active = True

    def leave(self) -> None:
        """Marks the block as left; `interrupt` has no effect from here on."""
        self.is_active = False

    def interrupt(self, cause: TrunklineError) -> None:
        """Interrupts the block; only the first cause counts, and only while the block runs."""
        self._changed.set()
        if self.cause is not None or not self.is_active:
            return
        self.cause = cause
        if isinstance(cause, ReplyCancelled) and self._on_cancel is not None:
            self._on_cancel()
        else:
            assert self._task is not None
            self._task.cancel()

    def notify(self) -> None:
        """Wakes those in `wait_until`, which check their conditions again."""
        self._changed.set()

    async def wait_until(
        self, ready: Callable[[], bool], failure: Callable[[], TrunklineError | None]
    ) -> None:
        """Waits until `ready()`. Raises the cause of an interruption, or `failure()` if there is one."""
        while True:
            if self.cause is not None and self.is_active:
                await asyncio.sleep(0)  # a cancel that was requested and not yet raised is raised here
                raise self.cause
            failed = failure()
            if failed is not None:
                raise failed
            if ready():
                return
            self._changed.clear()
            await self._changed.wait()

    async def absorb_interruption(self, error: BaseException | None) -> None:
        """Undoes the cancel by `interrupt`, after the block was left with `error`.

        Raises CancelledError if the task was also cancelled from elsewhere.
        """
        assert self._task is not None
        if isinstance(self.cause, ReplyCancelled) and self._on_cancel is not None:
            return
        if not isinstance(error, asyncio.CancelledError):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)  # a cancel that was requested and not yet raised is raised here
        if self._task.uncancel() > self._cancelling:
            raise asyncio.CancelledError
