"""An answer that an RPC awaits and the core delivers."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

from trunkline.v1.catalogue import Refused

R = TypeVar("R")


class PendingResult(Generic[R]):
    """The outcome of one request: a value or a refusal, delivered at most once.

    An outcome that arrives after the caller has gone is dropped.
    """

    def __init__(self) -> None:
        self.result: asyncio.Future[R] = asyncio.get_running_loop().create_future()

    def resolve(self, value: R) -> None:
        """Complete the request with a value."""
        if not self.result.done():
            self.result.set_result(value)

    def reject(self, reason: Refused) -> None:
        """Complete the request with a refusal."""
        if not self.result.done():
            self.result.set_exception(reason)
