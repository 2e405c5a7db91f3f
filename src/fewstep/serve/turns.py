"""Whose picture is next: owners take turns by the work they ask for, however much one of them asks.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): a picture's place is where its owner's last one ends, or the
place of what is being painted now, where that is later. Somebody new is so behind one picture of each, not behind all.
Departure: pictures that are given up before their turn do not count.
"""

from __future__ import annotations

import threading


class Turns:
    """Places in the queue; the lowest is next. Asked for on the loop's thread, begun on the engine's."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ends: dict[str, float] = {}
        self._waiting: dict[str, dict[float, float]] = {}
        self._lock = threading.Lock()

    def place(self, owner: str, cost: float) -> float:
        """The place of the owner's next picture, which costs so much (more than 0).

        >>> turns = Turns()
        >>> [turns.place(owner, 2.0) for owner in ("anne", "anne", "ben")]
        [0.0, 2.0, 0.0]
        >>> turns.begin("anne", 0.0), turns.begin("ben", 0.0), turns.begin("anne", 2.0)
        (None, None, None)
        >>> turns.place("ben", 2.0), turns.place("carla", 1.0)
        (2.0, 2.0)
        """
        with self._lock:
            waiting = self._waiting.setdefault(owner, {})
            place = max(self._now, self._ends.get(owner, 0.0), *waiting.values())
            waiting[place] = place + cost
            return place

    def begin(self, owner: str, place: float) -> None:
        """The picture of that place is begun."""
        with self._lock:
            self._now = max(self._now, place)
            self._ends[owner] = self._waiting.get(owner, {}).get(place, place)
            self._ends = {name: end for name, end in self._ends.items() if end > self._now}
        self.leave(owner, place)

    def leave(self, owner: str, place: float) -> None:
        """Nobody waits there any more."""
        with self._lock:
            waiting = self._waiting.get(owner, {})
            waiting.pop(place, None)
            if not waiting:
                self._waiting.pop(owner, None)
