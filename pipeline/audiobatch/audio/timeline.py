"""Which stretches of a recording are sent, and where each moment of what is sent lies in the recording."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray


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
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class Timeline:
    """Stretches of a recording, in order and apart, joined without gaps into what is sent.

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
        """Where a moment of what is sent lies in the recording; moments past the end lie at the end."""
        starts = list(accumulate((span.duration_s for span in self.spans), initial=0.0))
        index = min(max(0, bisect_right(starts, sent_s) - 1), len(self.spans) - 1)
        span = self.spans[index]
        return min(span.start_s + max(0.0, sent_s - starts[index]), span.end_s)

    def between(self, start_s: float, end_s: float) -> Timeline:
        """The part of this timeline from one moment of sent time to another.

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
        """The stretches' samples out of a recording's, frames x channels, to the nearest frame.

        Stretches that touch share no frame and leave none out. Reading stops behind the last one.

        Args:
            first_frame: of the recording at which the blocks begin; not behind `first_frame_at`.
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
        """The first frame of the recording that is sent."""
        return _frame(self.start_s, sample_rate_hz)


def _frame(at_s: float, sample_rate_hz: int) -> int:
    """The frame nearest to a time; of two, the later, also where sums of floats left the half a hair short.

    One part's end and the next one's beginning come by different sums: rounded at the half itself, a frame of
    some cuts would go out twice, or not at all.
    """
    return math.floor(at_s * sample_rate_hz + 0.501)
