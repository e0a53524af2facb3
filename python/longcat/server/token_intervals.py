"""The times between the tokens of completions, counted at little cost: every token comes by here."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


class TokenIntervals:
    """A histogram of seconds.

    Args:
        bounds: upper bounds of the buckets [s], in rising order.
    """

    def __init__(self, bounds: Sequence[float]):
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Counts one interval."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self.sum += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """The number of intervals up to each bound, as Prometheus shows them."""
        names = [*map(str, map(float, self._bounds)), "+Inf"]
        return list(zip(names, map(float, accumulate(self._counts)), strict=True))


class TokenClock:
    """The time since the last token of each completion of a request.

    Args:
        intervals: where the times go.
    """

    def __init__(self, intervals: TokenIntervals):
        self._intervals = intervals
        self._last: dict[int, float] = {}

    def tick(self, index: int, now: float) -> None:
        """Takes a completion's next token.

        Args:
            index: of the completion in its request.
            now: of a clock [s].
        """
        last = self._last.get(index)
        if last is not None:
            self._intervals.add(now - last)
        self._last[index] = now
