"""Time and randomness as this package gets them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """Sources of time and randomness; tests pass their own."""

    #: Seconds since an arbitrary moment; never goes back.
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    #: Seconds since 1970.
    now_s: Callable[[], float] = time.time
    #: Uniform in [0, 1).
    random: Callable[[], float] = random.random
