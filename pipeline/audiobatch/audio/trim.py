"""Shorten long silences before sending: the service bills recordings by time.

A `Timeline` says which stretches of a recording are sent, and maps each moment of them to the recording.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from audiobatch.audio.levels import Levels, quiet_below_dbfs, runs_below, to_power

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

#: Silences up to this length belong to speech: pauses between sentences, for breath, for thought.
LONGEST_PAUSE_S = 1.5
#: A longer silence is shortened to this, half after the speech before it and half before the speech after it:
#: enough for consonants that begin below the threshold, and for a pause that can be heard.
SHORTENED_PAUSE_S = 0.8


def plan_trim(
    levels: Levels, *, longest_pause_s: float = LONGEST_PAUSE_S, shortened_s: float = SHORTENED_PAUSE_S
) -> Timeline | None:
    """Shorten a recording's long silences; None where that saves nothing.

    A recording that is silent throughout is left alone: whether to send it is decided elsewhere.

    Raises:
        ValueError: the shortened pause would be longer than the longest one.
    """
    if shortened_s > longest_pause_s:
        raise ValueError(f"cannot shorten pauses of {longest_pause_s} s to {shortened_s} s")
    hop_s = levels.hop_s
    count = len(levels.power)
    least = int(longest_pause_s / hop_s) + 1
    margin = max(1, round(shortened_s / 2 / hop_s))
    spans: list[Span] = []
    begin = 0
    for first, last in runs_below(levels.power, to_power(quiet_below_dbfs(levels)), least):
        stop = 0 if first == 0 else first + margin
        if stop > begin:
            spans.append(Span(start_s=begin * hop_s, end_s=stop * hop_s))
        begin = last if last == count else last - margin
    if begin < count and begin * hop_s < levels.duration_s:
        spans.append(Span(start_s=begin * hop_s, end_s=levels.duration_s))
    timeline = Timeline(tuple(spans)) if spans else None
    return timeline if timeline and saved_s(levels, timeline) > hop_s else None


def saved_s(levels: Levels, timeline: Timeline | None) -> float:
    """Return the seconds of the recording that a trim leaves out, which are not billed."""
    return levels.duration_s - timeline.duration_s if timeline else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of a recording, in seconds from its beginning."""

    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.start_s < self.end_s:
            raise ValueError(f"not a stretch of time: {self}")

    @property
    def duration_s(self) -> float:
        """The stretch's length."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class Timeline:
    """The stretches of a recording that are sent, in order and joined without gaps.

    "Sent" time runs from 0 to `duration_s`; "source" time is the recording's own.
    """

    spans: tuple[Span, ...]

    def __post_init__(self) -> None:
        if not self.spans:
            raise ValueError("a timeline needs at least one stretch")
        if any(later.start_s < earlier.end_s for earlier, later in pairwise(self.spans)):
            raise ValueError("the stretches of a timeline are in order and do not overlap")

    @property
    def duration_s(self) -> float:
        """The length of all stretches."""
        return sum(span.duration_s for span in self.spans)

    @property
    def start_s(self) -> float:
        """Source time of the first moment that is sent."""
        return self.spans[0].start_s

    @property
    def end_s(self) -> float:
        """Source time at which the last stretch ends."""
        return self.spans[-1].end_s

    def to_source_s(self, sent_s: float) -> float:
        """Map a moment of sent time to the recording; moments past the end lie at the end."""
        starts = list(accumulate((span.duration_s for span in self.spans), initial=0.0))
        index = min(max(0, bisect_right(starts, sent_s) - 1), len(self.spans) - 1)
        span = self.spans[index]
        return min(span.start_s + max(0.0, sent_s - starts[index]), span.end_s)

    def between(self, start_s: float, end_s: float) -> Timeline:
        """Return the part of this timeline between two moments of sent time.

        Raises:
            ValueError: nothing lies between them.
        """
        spans: list[Span] = []
        at = 0.0
        for span in self.spans:
            first, last = max(start_s, at), min(end_s, at + span.duration_s)
            if last - first > 1e-9:
                spans.append(Span(start_s=span.start_s + first - at, end_s=span.start_s + last - at))
            at += span.duration_s
        return Timeline(tuple(spans))

    def cut(
        self, blocks: Iterable[NDArray[np.float32]], sample_rate_hz: int, *, first_frame: int = 0
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the stretches' samples from a recording's blocks, frames x channels, to the nearest frame.

        Stretches that touch share no frame and leave none out. Reading stops after the last one.

        Args:
            first_frame: frame of the recording at which the blocks begin; at most `first_frame_at`.
        """
        bounds = [
            (_frame(span.start_s, sample_rate_hz), _frame(span.end_s, sample_rate_hz)) for span in self.spans
        ]
        at, index = first_frame, 0
        for block in blocks:
            end = at + len(block)
            while index < len(bounds) and bounds[index][0] < end:
                first, last = bounds[index]
                piece = block[max(first, at) - at : min(last, end) - at]
                if len(piece):
                    yield piece
                if last > end:
                    break
                index += 1
            at = end
            if index == len(bounds):
                return

    def first_frame_at(self, sample_rate_hz: int) -> int:
        """Return the first frame of the recording that is sent."""
        return _frame(self.start_s, sample_rate_hz)


def _frame(at_s: float, sample_rate_hz: int) -> int:
    """Return the frame nearest to a time; of two, the later, even where a sum of floats falls just short of half.

    One part's end and the next one's beginning are different sums of floats. Rounded at exactly one half, some
    cuts would send a frame twice, or not at all.
    """
    return math.floor(at_s * sample_rate_hz + 0.501)
