"""Who is to leave, and when, in the order in which they came: 16 bytes a turn."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, MutableSequence
from typing import Generic, TypeVar

SETTLED = 1_000  # turns that need no sweep, whatever their share; 16 kB
NEVER = 2**63 - 1  # ms; the append time of what is not there

Item = TypeVar("Item")


class Line(Generic[Item]):
    """Turns, each an append time and an item; `items` is what they are kept in."""

    def __init__(self, items: MutableSequence[Item]) -> None:
        self._at = array("q")  # ms
        self._items = items
        self._over = 0  # turns that are over and still held
        self.count = 0
        self.first = NEVER  # append time of whose turn is next, ms

    def __iter__(self) -> Iterator[tuple[int, Item]]:
        return ((self._at[i], self._items[i]) for i in range(self._over, len(self._at)))

    def push(self, at: int, item: Item) -> None:
        if not self.count:
            self.first = at
        self.count += 1
        self._at.append(at)
        self._items.append(item)

    def pop(self) -> tuple[int, Item]:
        at, item = self.first, self._items[self._over]
        self._over += 1
        self.count -= 1
        if self._over > SETTLED and self._over * 2 > len(self._at):
            del self._at[: self._over]
            del self._items[: self._over]
            self._over = 0
        self.first = self._at[self._over] if self.count else NEVER
        return at, item

    def sweep(self, is_alive: Callable[[int, Item], bool]) -> None:
        """Drops the turns of those who have left before. To be done when as many have left as wait."""
        kept = Line(self._items[:0])
        here: set[Item] = set()  # of one append time: one turn is enough
        for at, item in self:
            if kept._at and at != kept._at[-1]:
                here.clear()
            if item not in here and is_alive(at, item):
                here.add(item)
                kept.push(at, item)
        self._at, self._items, self._over = kept._at, kept._items, 0
        self.count, self.first = kept.count, kept.first
