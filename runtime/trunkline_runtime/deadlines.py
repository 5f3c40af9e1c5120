"""Deadlines of any number of items, for one timer."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from heapq import heappop, heappush
from math import ceil
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Deadlines(Generic[T]):
    """Items with a deadline each, due at multiples of `grid_s`, never early.

    Setting, moving and removing one takes the same time however many there are. Memory is that of the items,
    and of one entry for each multiple of `grid_s` up to the latest deadline. No clock is read here.
    """

    __slots__ = ("_grid_s", "_items", "_order", "_ticks")

    def __init__(self, grid_s: float) -> None:
        self._grid_s = grid_s
        self._ticks: dict[T, int] = {}
        #: By tick; one that has become empty stays until it is due.
        self._items: dict[int, dict[T, None]] = {}
        #: A heap of the ticks in `_items`.
        self._order: list[int] = []

    def __len__(self) -> int:
        return len(self._ticks)

    def __iter__(self) -> Iterator[T]:
        # A copy, so that items may be moved meanwhile.
        return iter(list(self._ticks))

    def set(self, item: T, deadline: float) -> None:
        """Add an item, or move it."""
        self.remove(item)
        tick = ceil(deadline / self._grid_s)
        items = self._items.get(tick)
        if items is None:
            items = self._items[tick] = {}
            heappush(self._order, tick)
        items[item] = None
        self._ticks[item] = tick

    def remove(self, item: T) -> None:
        """Remove an item. Idempotent."""
        tick = self._ticks.pop(item, None)
        if tick is not None:
            del self._items[tick][item]

    @property
    def next_due(self) -> float | None:
        """Time at which to call `take_due`: no later than the first deadline on the grid. None if empty."""
        return self._order[0] * self._grid_s if self._ticks else None

    def take_due(self, now: float) -> list[T]:
        """Remove and return the items that are due, earliest first."""
        due: list[T] = []
        while self._order and self._order[0] * self._grid_s <= now:
            due.extend(self._items.pop(heappop(self._order)))
        for item in due:
            del self._ticks[item]
        return due
