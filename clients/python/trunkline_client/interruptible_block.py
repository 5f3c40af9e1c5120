"""The block in which a message is written, and its interruption when nothing more can be written."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from typing import TypeAlias

from trunkline_client.errors import ReplyCancelled, TrunklineError

log = logging.getLogger("trunkline_client")

OnCancel: TypeAlias = Callable[[], None]
"""Called when readers cancel a message, instead of interrupting the block that writes it."""


class BlockPhase(Enum):
    """Phase of a block that writes a message."""

    NEW = 0
    #: The message is being opened.
    OPENING = 1
    ACTIVE = 2
    LEFT = 3


class InterruptibleBlock:
    """An `async with` block that others can interrupt, as `asyncio.timeout` interrupts its block.

    The block's task is cancelled; `absorb_interruption` undoes that cancel when the block is left, so
    only `cause` remains to be raised. One task enters and leaves; several may wait.
    """

    def __init__(self, on_cancel: OnCancel | None) -> None:
        #: The reason for which the block was interrupted.
        self.cause: TrunklineError | None = None
        self.phase = BlockPhase.NEW
        #: Whether the block is running.
        self.is_active = False
        self._on_cancel = on_cancel
        self._changed = asyncio.Event()
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        #: Whether the task was cancelled, and not only `on_cancel` called.
        self._is_task_cancelled = False

    @property
    def is_new(self) -> bool:
        """Whether nothing was done to enter the block."""
        return self.phase is BlockPhase.NEW

    @property
    def can_interrupt(self) -> bool:
        """Whether `interrupt` raises in the code that enters the block or runs in it."""
        return self.phase in (BlockPhase.OPENING, BlockPhase.ACTIVE)

    def begin(self) -> None:
        """Marks the message as being opened. Raises RuntimeError for a block that was entered before."""
        if not self.is_new:
            raise RuntimeError("The message was opened already: make another one for each `async with`")
        self.phase = BlockPhase.OPENING

    def enter(self) -> None:
        """Marks the current task's block as running."""
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        self.phase = BlockPhase.ACTIVE
        self.is_active = True

    def leave(self) -> None:
        """Marks the block as left; `interrupt` has no effect from here on."""
        self.phase = BlockPhase.LEFT
        self.is_active = False

    def interrupt(self, cause: TrunklineError) -> None:
        """Interrupts the block, or its opening.

        Only the first cause counts. After a cancel that `on_cancel` has handled, another cause such as
        Fenced still interrupts the block.
        """
        self._changed.set()
        if self.phase is BlockPhase.LEFT or self._is_task_cancelled:
            return
        is_first, is_cancel = self.cause is None, isinstance(cause, ReplyCancelled)
        if not is_first and (is_cancel or not self.is_active):
            return
        self.cause = cause
        if not self.is_active:
            return  # `wait_until` raises it
        if not (is_cancel and self._call_on_cancel()):
            assert self._task is not None
            self._is_task_cancelled = True
            self._task.cancel()

    def _call_on_cancel(self) -> bool:
        """Calls `on_cancel`. Returns False if there is none or it raises: the block is interrupted then."""
        if self._on_cancel is None:
            return False
        try:
            self._on_cancel()
        except Exception as error:
            log.error("on_cancel failed, so the block is interrupted: %r", error)
            return False
        return True

    def notify(self) -> None:
        """Wakes those in `wait_until`, which check their conditions again."""
        self._changed.set()

    async def wait_until(
        self, ready: Callable[[], bool], failure: Callable[[], TrunklineError | None]
    ) -> None:
        """Waits until `ready()`. Raises the cause of an interruption, or `failure()` if there is one."""
        while True:
            if self.cause is not None and self.phase is not BlockPhase.LEFT:
                await self.let_loop_run(1)
                raise self.cause
            failed = failure()
            if failed is not None:
                raise failed
            if ready():
                return
            self._changed.clear()
            with self._raising_cause():
                await self._changed.wait()

    async def let_loop_run(self, steps: int) -> None:
        """Lets the event loop run. Raises the cause of an interruption if there is one by then."""
        with self._raising_cause():
            for _ in range(steps):
                await asyncio.sleep(0)  # a cancel that was requested and not yet raised is raised here

    @contextmanager
    def _raising_cause(self) -> Iterator[None]:
        """Raises the cause instead of the CancelledError by which `interrupt` wakes the block's task."""
        try:
            yield
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.cause is None or not self._is_task_cancelled or task is None or task is not self._task:
                raise
            if task.cancelling() > self._cancelling + 1:
                raise  # cancelled from elsewhere, too
            raise self.cause from None

    async def absorb_interruption(self, error: BaseException | None) -> None:
        """Undoes the cancel by `interrupt`, after the block was left with `error`.

        Raises CancelledError if the task was also cancelled from elsewhere.
        """
        assert self._task is not None
        if not self._is_task_cancelled:
            return
        if not isinstance(error, asyncio.CancelledError):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)  # a cancel that was requested and not yet raised is raised here
        if self._task.uncancel() > self._cancelling:
            raise asyncio.CancelledError
