"""Amounts that are not known yet, and the sums that are done with them."""

from __future__ import annotations

from dataclasses import dataclass

from audiobatch.config.prices import CHARACTERS_PER_TEXT_TOKEN
from audiobatch.planning.estimate import CHARACTERS_PER_S

#: The figures of a range, in the order in which they are shown.
FIGURES = ("low", "expected", "high")


@dataclass(frozen=True, slots=True)
class Range:
    """The least, the likely and the most that something comes to."""

    low: float = 0.0
    expected: float = 0.0
    high: float = 0.0

    @classmethod
    def exactly(cls, amount: float) -> Range:
        """An amount that is known."""
        return cls(amount, amount, amount)

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def __mul__(self, by: Range | float) -> Range:
        """Figure by figure."""
        of = by if isinstance(by, Range) else Range.exactly(by)
        return Range(self.low * of.low, self.expected * of.expected, self.high * of.high)

    def at_most(self, limit: float) -> Range:
        """No figure above the limit."""
        return Range(min(self.low, limit), min(self.expected, limit), min(self.high, limit))


#: Words in a sound, as shares of what speech of its length usually has.
_WORDS = Range(0.0, 1.0, 2.0)


def tokens_of_words(sound_s: Range) -> Range:
    """Text tokens of what is said in so many seconds."""
    return sound_s * (CHARACTERS_PER_S / CHARACTERS_PER_TEXT_TOKEN) * _WORDS
